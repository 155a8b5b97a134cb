"""Loads every export again as any user would, and compares what it says with what the student says.

Shape suffixes: T positions, V vocabulary.
"""

import dataclasses
import hashlib
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers import AutoTokenizer

from heal.export.exportable import Exportable
from heal.export.factors import ExportError, Factors
from heal.models.agreement import Agreement, agreement
from heal.models.chat import Chat
from heal.models.language_model import LanguageModel
from heal.models.load import load_language_model


@dataclass(frozen=True)
class Rounding:
    """What another order of the same sums may change, over the probe prompts.

    Attributes:
        p95: of the KL, nats per token.
        top1: least fraction of positions with the same likeliest token.
    """

    p95: float
    top1: float


# By the dtype of the products. See docs/numerics.md for what was measured.
ROUNDING = {
    torch.float32: Rounding(1e-7, 0.99),
    torch.float16: Rounding(1e-2, 0.9),
    torch.bfloat16: Rounding(0.1, 0.8),
}


def probes(student: Exportable, chat: Chat | None = None) -> list[list[int]]:
    """Token ids of a few chats of several lengths: held-out prompts alone, and under the personas.

    Args:
        student: whose prompts they are.
        chat: that renders them; None: the student's own.
    """
    trait, chat = student.trait, chat or student.model.chat
    by_length = sorted(trait.heldout_prompts, key=len)
    chats = [
        ("", by_length[0]),
        (student.config.system, by_length[len(by_length) // 2]),
        (trait.negative, by_length[-1]),
        (trait.positive, " ".join(by_length[:4])),
    ]
    return [chat.ids(system, prompt)[: student.model.context] for system, prompt in chats]


def student_logits(student: Exportable, gate: float, prompts: Iterable[Sequence[int]]) -> list[Tensor]:
    """The student's float32 logits `[T, V]` for each prompt, with the history at `gate`."""
    with student.accumulator.on_adapters(), student.accumulator.gates(gate, 0.0):
        return model_logits(student.model.model, prompts)


@torch.no_grad()
def model_logits(model: nn.Module, prompts: Iterable[Sequence[int]]) -> list[Tensor]:
    """Float32 logits `[T, V]` of each prompt by an ordinary forward pass, on the CPU."""
    device = next(model.parameters()).device
    return [model(input_ids=torch.tensor([list(ids)], device=device)).logits[0].float().cpu() for ids in prompts]


def verify_adapter(student: Exportable, folder: Path, factors: Factors, gate: float) -> Agreement:
    """Loads the adapter with plain peft on a freshly loaded base; how near it is to the student.

    A spread base is not loaded again: no device has room for it.

    Its factors must be the intended ones bit for bit; an exact adapter must be the student up to rounding.

    Raises:
        ExportError: they are not.
    """
    if student.model.spread is not None:  # no device has room for another base
        with student.accumulator.saved(folder) as loaded:
            check_factors(loaded, factors)
            said = model_logits(loaded, probes(student))
        return _agreed(student, said, gate, exact=not factors.lost)
    fresh = load_again(student, room(student.model), load_4bit=student.config.load_4bit)
    loaded = PeftModel.from_pretrained(fresh.model, str(folder)).eval()
    check_factors(loaded, factors)
    return _compared(student, loaded, gate, exact=not factors.lost)


def verify_loaded(student: Exportable, loaded: nn.Module, gate: float) -> Agreement:
    """How near a model that was loaded from an export is to the student; ExportError if that is not finite."""
    return _compared(student, loaded, gate, exact=False)


def verify_merged(
    student: Exportable, folder: Path, gate: float, dtype: torch.dtype, digests: dict[str, str]
) -> Agreement:
    """Loads the merged model and its tokenizer from `folder`; how near it is to the student.

    Its weights must be those that were written, its tokenizer must render the same chats, and where neither its weights
    nor the student's are rounded (float32) it must be the student up to rounding.

    Raises:
        ExportError: they are not.
    """
    weights = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    fresh = load_again(student, room(student.model, weights), folder, dtype=dtype)
    if fingerprints(fresh.model) != digests:
        raise ExportError("the exported model's weights are not those that were written; it was removed.")
    if probes(student, fresh.chat) != probes(student) or fresh.end_ids != student.model.end_ids:
        raise ExportError("the exported tokenizer does not render chats as the student's does; it was removed.")
    exact = dtype == student.model.model.dtype == torch.float32 and not student.config.load_4bit
    return _compared(student, fresh.model, gate, exact)


def check_tokenizer(student: Exportable, folder: Path) -> None:
    """Raises ExportError unless the tokenizer in `folder` renders chats as the student's does."""
    if probes(student, Chat(AutoTokenizer.from_pretrained(folder))) != probes(student):
        raise ExportError("the exported tokenizer does not render chats as the student's does; it was removed.")


def fingerprints(model: nn.Module) -> dict[str, str]:
    """SHA-256 of every tensor of the model's state."""
    return {
        name: hashlib.sha256(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()).hexdigest()
        for name, tensor in model.state_dict().items()
    }


def load_again(
    student: Exportable,
    device: torch.device,
    folder: Path | None = None,
    load_4bit: bool = False,
    dtype: torch.dtype | None = None,
) -> LanguageModel:
    """A fresh model: the run's base, or the exported one in `folder`, which must require none of the run's settings.

    In the student's dtype if none is given. On a CPU, plain attention replaces a kernel that only GPUs have.
    """
    config = dataclasses.replace(student.config, load_4bit=load_4bit)
    if device.type == "cpu" and config.attention == "flash_attention_2":
        config = dataclasses.replace(config, attention="eager")
    if folder is not None:
        config = dataclasses.replace(config, revision=None, chat_template=None, pad_token=None)
    source = None if folder is None else str(folder)
    return load_language_model(config, dtype or student.model.model.dtype, device, source)


def room(language_model: LanguageModel, needed: int | None = None) -> torch.device:
    """The model's device, or the CPU if `needed` bytes do not fit beside it; None: those of a second copy."""
    device = language_model.device
    if device.type != "cuda":
        return device
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info(device)
    if needed is None:
        needed = sum(weight.numel() * weight.element_size() for weight in language_model.model.parameters())
    return device if free > 1.2 * needed else torch.device("cpu")


def check_factors(loaded: PeftModel, factors: Factors) -> None:
    """Raises ExportError unless the adapter in `loaded` is active, unscaled, and holds exactly `factors`."""
    lora_layers = {
        name: module for name, module in loaded.base_model.model.named_modules() if isinstance(module, LoraLayer)
    }
    if lora_layers.keys() != factors.layers.keys():
        raise ExportError("the exported adapter sits on other layers than it was made for; it was removed.")
    for name, (a_RI, b_OR) in factors.layers.items():
        layer = lora_layers[name]
        if layer.active_adapters != ["default"] or layer.scaling["default"] != 1.0:
            raise ExportError(f"{name}: the exported adapter is not active at scale 1; it was removed.")
        same = torch.equal(layer.lora_A["default"].weight.detach().float().cpu(), a_RI)
        if not same or not torch.equal(layer.lora_B["default"].weight.detach().float().cpu(), b_OR):
            raise ExportError(f"{name}: the exported factors are not those that were written; the export was removed.")


def check(found: Agreement, dtype: torch.dtype, exact: bool, whose: str) -> Agreement:
    """`found`, of an export computed in `dtype`; ExportError if it is not finite, or beyond rounding where `exact`."""
    limit = ROUNDING[dtype] if exact else Rounding(sys.float_info.max, 0.0)
    if not (found.p95 <= limit.p95 and found.top1 >= limit.top1):
        bound = f"p95 up to {limit.p95:.0e} and top-1 from {limit.top1:.0%} are rounding"
        raise ExportError(
            f"the export does not say what {whose} says ({found}; {bound if exact else 'the KL must be finite'}); "
            "it was removed."
        )
    return found


def _compared(student: Exportable, loaded: nn.Module, gate: float, exact: bool) -> Agreement:
    """How near `loaded` is to the student; see `check`."""
    return _agreed(student, model_logits(loaded, probes(student)), gate, exact)


def _agreed(student: Exportable, said: Sequence[Tensor], gate: float, exact: bool) -> Agreement:
    """How near logits of the probe prompts are to the student's; see `check`."""
    found = agreement(student_logits(student, gate, probes(student)), said)
    return check(found, student.model.model.dtype, exact, "the student")
