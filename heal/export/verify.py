"""Loads every export again as any user would, and compares its logits with the student's.

Shape suffixes: T positions, V vocabulary.
"""

import dataclasses
import hashlib
import math
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from heal.export.exportable import Exportable
from heal.export.factors import ExportError, Factors
from heal.models.chat import Chat
from heal.models.language_model import LanguageModel
from heal.models.load import load_language_model

# Bounds on rounding. SmolLM2-135M in float32 (30 blocks, logits up to 38): 7e-5 for any reordering of sums, in
# adapters and merged weights alike; random weights amplify it tenfold.
_FLOAT32_BOUND = 1e-4  # logits
ADAPTER_RELATIVE = 2e-5  # of the largest logit, float32: the same sums, possibly in another order
_MERGED_RELATIVE = 1e-4  # of the largest logit, float32: every merged weight is rounded
_COARSE_ROUNDINGS = 8  # of the largest logit, in 16-bit dtypes, where every block rounds


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


@torch.inference_mode()
def model_logits(model: nn.Module, prompts: Iterable[Sequence[int]]) -> list[Tensor]:
    """Float32 logits `[T, V]` of each prompt by an ordinary forward pass, on the CPU."""
    device = next(model.parameters()).device
    return [model(input_ids=torch.tensor([list(ids)], device=device)).logits[0].float().cpu() for ids in prompts]


def difference(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> float:
    """Max |difference|; infinite if anything is not finite."""
    largest = max(float((a_TV - b_TV).abs().max()) for a_TV, b_TV in zip(ours, theirs, strict=True))
    return largest if math.isfinite(largest) else math.inf


def allowed(dtype: torch.dtype, logits: Sequence[Tensor], relative: float) -> float:
    """The logit difference that rounding explains: in float32 1e-4, or `relative` of the largest logit if larger."""
    scale = max(float(l_TV.abs().max()) for l_TV in logits)
    if dtype == torch.float32:
        return max(_FLOAT32_BOUND, relative * scale)
    return _COARSE_ROUNDINGS * torch.finfo(dtype).eps * scale


def verify_adapter(student: Exportable, folder: Path, factors: Factors, gate: float) -> float:
    """Loads the adapter with plain peft on a freshly loaded base.

    Its factors must be the intended ones bit for bit; an exact adapter's logits must be the student's.

    Returns:
        Max |logit difference| to the student.

    Raises:
        ExportError: they are not.
    """
    fresh = load_again(student, room(student.model), load_4bit=student.config.load_4bit)
    loaded = PeftModel.from_pretrained(fresh.model, str(folder)).eval()
    check_factors(loaded, factors)
    return _compare(student, loaded, gate, None if factors.lost else ADAPTER_RELATIVE)


def verify_merged(student: Exportable, folder: Path, gate: float, digests: dict[str, str]) -> float:
    """Loads the merged model and its tokenizer from `folder`.

    Its weights must be those that were written, its tokenizer must render the same chats, and where no
    rounding intervenes (a float32 base) its logits must be the student's.

    Returns:
        Max |logit difference| to the student.

    Raises:
        ExportError: they are not.
    """
    weights = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    fresh = load_again(student, room(student.model, weights), folder)
    if fingerprints(fresh.model) != digests:
        raise ExportError("the exported model's weights are not those that were written; it was removed.")
    if probes(student, fresh.chat) != probes(student) or fresh.end_ids != student.model.end_ids:
        raise ExportError("the exported tokenizer does not render chats as the student's does; it was removed.")
    exact = fresh.model.dtype == torch.float32 and not student.config.load_4bit
    return _compare(student, fresh.model, gate, _MERGED_RELATIVE if exact else None)


def fingerprints(model: nn.Module) -> dict[str, str]:
    """SHA-256 of every tensor of the model's state."""
    return {
        name: hashlib.sha256(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()).hexdigest()
        for name, tensor in model.state_dict().items()
    }


def load_again(
    student: Exportable, device: torch.device, folder: Path | None = None, load_4bit: bool = False
) -> LanguageModel:
    """A fresh model: the run's base, or the exported one in `folder`, which must require none of the run's settings.

    On a CPU, plain attention replaces a kernel that only GPUs have.
    """
    config = dataclasses.replace(student.config, load_4bit=load_4bit)
    if device.type == "cpu" and config.attention == "flash_attention_2":
        config = dataclasses.replace(config, attention="eager")
    if folder is not None:
        config = dataclasses.replace(config, revision=None, chat_template=None, pad_token=None)
    source = None if folder is None else str(folder)
    return load_language_model(config, student.model.model.dtype, device, source)


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


def _compare(student: Exportable, loaded: nn.Module, gate: float, relative: float | None) -> float:
    """Max |logit difference| of `loaded` to the student; bounded by `allowed` unless `relative` is None."""
    prompts = probes(student)
    wanted = student_logits(student, gate, prompts)
    error = difference(model_logits(loaded, prompts), wanted)
    limit = math.inf if relative is None else allowed(student.model.model.dtype, wanted, relative)
    if not error < limit:
        bound = "they must be finite" if relative is None else f"at most {limit:.1e} is rounding"
        raise ExportError(f"the export's logits are {error:.1e} from the student's ({bound}); it was removed.")
    return error
