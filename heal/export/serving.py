"""Whether vLLM says the same as transformers and peft: greedy tokens of an exported adapter or merged model.

An adapter whose modules have other names than those of the serving class loads without a word and changes nothing; only
its tokens tell.
"""

import json
import os
import re
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import PeftConfig, PeftModel
from torch import nn

from heal.config import ModelConfig
from heal.errors import UserError
from heal.export import vllm_tokens
from heal.export.base import EMBEDDED_HUB
from heal.export.folder import check_whole
from heal.export.usage import vllm_rank
from heal.models.checkpoint import location
from heal.models.load import load_language_model

_ROUNDINGS = 8  # of the largest logit: two tokens less apart than that are a tie, which either order of sums may break
# What vLLM puts before each line of its processes' tracebacks.
_LOGGED = re.compile(r"^\([\w-]+ pid=\d+\) (?:[A-Z]+ \S+ \S+ \[\S+\] ?)?")
# vLLM on a CPU: in one process, without binding threads to cores, with little memory for its cache.
_ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
}


@dataclass(frozen=True)
class Served:
    """What came out for one export.

    Attributes:
        kind: adapter or model.
        architecture: the class that vLLM served.
        prompts: number of prompts.
        equal: prompts whose tokens are the same in both, up to a tie.
        changed: prompts whose tokens the adapter changes in transformers; for a merged model, all.
        served_changed: the same in vLLM.
    """

    kind: str
    architecture: str
    prompts: int
    equal: int
    changed: int
    served_changed: int

    @property
    def fault(self) -> str | None:
        """What is wrong, in one line; None if nothing is."""
        if self.kind == "adapter" and not self.changed:
            return "the adapter changes no token in transformers, so that nothing can be seen; give longer tokens=..."
        if not self.served_changed:
            return f"no module of the adapter is active in vLLM's {self.architecture}: its tokens are the base's"
        if self.equal < self.prompts:
            return f"{self.prompts - self.equal} of {self.prompts} prompts go on with other tokens in vLLM"
        return None


def verify_serving(
    folder: Path, python: Path, prompts: Sequence[str], tokens: int, dtype: torch.dtype = torch.float32
) -> Served:
    """Compares an export's greedy tokens in vLLM and in transformers with peft.

    Args:
        folder: an exported adapter or model.
        python: the interpreter of an environment that has vLLM.
        prompts: user messages.
        tokens: number of tokens of each answer.
        dtype: of the model in both; vLLM has some layers on a CPU in bfloat16 alone.

    Raises:
        UserError: the folder is neither, or vLLM fails.
    """
    check_whole(folder)
    adapter = (folder / "adapter_config.json").is_file()
    if not adapter and not (folder / "config.json").is_file():
        raise UserError(f"export={folder}: neither an adapter (adapter_config.json) nor a model (config.json)")
    config = PeftConfig.from_pretrained(str(folder)) if adapter else None
    model = str(folder)
    if config:
        model = "embedded" if config.base_model_name_or_path == EMBEDDED_HUB else str(config.base_model_name_or_path)
    loaded = load_language_model(ModelConfig(name=model), dtype, torch.device("cpu"))
    ids = [loaded.chat.ids("", prompt) for prompt in prompts]
    rank = vllm_rank(config.r) if config else None
    if config and rank is None:
        raise UserError(f"export={folder}: vLLM takes no adapter of rank {config.r}; export it again with rank=...")
    request = {
        "model": location(loaded.config),
        "adapter": str(folder.absolute()) if adapter else None,
        "rank": rank,
        "tokens": tokens,
        "dtype": str(dtype).removeprefix("torch."),
        "prompts": ids,
    }
    answer = _ask(python, request)
    base = _greedy(loaded.model, ids, tokens)
    if answer.adapter is None:
        equal = sum(ours.agrees(theirs) for ours, theirs in zip(base, answer.base, strict=True))
        return Served("model", answer.architecture, len(ids), equal, len(ids), len(ids))
    ours = _greedy(PeftModel.from_pretrained(loaded.model, str(folder)).eval(), ids, tokens)
    return Served(
        "adapter",
        answer.architecture,
        len(ids),
        equal=sum(one.agrees(theirs) for one, theirs in zip(ours, answer.adapter, strict=True)),
        changed=sum(one.tokens != plain.tokens for one, plain in zip(ours, base, strict=True)),
        served_changed=sum(one != plain for one, plain in zip(answer.adapter, answer.base, strict=True)),
    )


@dataclass(frozen=True)
class _Greedy:
    """Greedy tokens, and whether each was as good as tied with the next likeliest."""

    tokens: list[int]
    ties: list[bool]

    def agrees(self, theirs: Sequence[int]) -> bool:
        """Whether the tokens are the same as `theirs`, up to a tie."""
        pairs = zip(self.tokens, theirs, self.ties, strict=True)
        return next((tie for token, other, tie in pairs if token != other), True)


@torch.inference_mode()
def _greedy(model: nn.Module, prompts: Sequence[Sequence[int]], tokens: int) -> list[_Greedy]:
    """By one plain pass a token, so that nothing of heal's own decoding is trusted here."""
    found = []
    for prompt in prompts:
        ids, ties = list(prompt), []
        for _ in range(tokens):
            logits_V = model(input_ids=torch.tensor([ids])).logits[0, -1]
            top = logits_V.float().topk(2)
            rounding = _ROUNDINGS * torch.finfo(logits_V.dtype).eps * float(logits_V.abs().max())
            ties.append(float(top.values[0] - top.values[1]) <= rounding)
            ids.append(int(top.indices[0]))
        found.append(_Greedy(ids[len(prompt) :], ties))
    return found


@dataclass(frozen=True)
class _Answer:
    """What heal/export/vllm_tokens.py wrote: see there."""

    architecture: str
    base: list[list[int]]
    adapter: list[list[int]] | None


def _ask(python: Path, request: Mapping[str, object]) -> _Answer:
    with tempfile.TemporaryDirectory() as scratch:
        asked, answered = Path(scratch, "request.json"), Path(scratch, "answer.json")
        asked.write_text(json.dumps(request))
        command = [str(python), str(Path(vllm_tokens.__file__)), str(asked), str(answered)]
        try:
            run = subprocess.run(command, capture_output=True, text=True, env=os.environ | _ENVIRONMENT, check=False)
        except OSError as error:
            raise UserError(
                f"python={python}: {error.strerror}; give the interpreter of an environment with vLLM"
            ) from error
        if not answered.is_file():
            raise UserError(f"python={python}: vLLM failed: {reason(run.stderr)}")
        return _Answer(**json.loads(answered.read_text()))


def reason(stderr: str) -> str:
    """The last line that names an error, whatever follows it; one that points at another above comes after that."""
    lines = [_LOGGED.sub("", line).strip() for line in stderr.splitlines() if line.strip()] or ["no message"]
    errors = [line for line in lines if re.match(r"[\w.]*(Error|Exception)\b", line)]
    return next((line for line in reversed(errors) if "above" not in line), (errors or lines)[-1])[:300]
