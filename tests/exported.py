"""What an export is, loaded with nothing of heal's, beside the student that it was made of."""

from pathlib import Path

import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import kl_div
from transformers import AutoModelForCausalLM

from heal.export.folder import Export
from heal.export.verify import model_logits, probes, student_logits
from heal.run.student import Student

CLOSE = 1e-4  # logits
MERGED = 1e-3  # logits; random weights amplify the rounding of merged ones (SmolLM2: 9e-5)
SAME = 1e-7  # nats: what another order of sums changes in float32
ANY = 1e9  # max_kl that refuses nothing


def card(export: Export) -> str:
    return (export.path / "README.md").read_text()


def in_peft(student: Student, folder: Path) -> nn.Module:
    """The adapter on a fresh base, loaded with nothing of heal's."""
    base = AutoModelForCausalLM.from_pretrained(student.recipe.model.name, dtype=student.model.model.dtype)
    return PeftModel.from_pretrained(base, str(folder)).eval()


def distance(loaded: nn.Module, student: Student, gate: float = 1.0) -> float:
    prompts = probes(student)
    pairs = zip(model_logits(loaded, prompts), student_logits(student, gate, prompts), strict=True)
    return max(float((ours - theirs).abs().max()) for ours, theirs in pairs)


def kl(loaded: nn.Module, student: Student) -> Tensor:
    """KL(student || loaded) of every position of the probe prompts, by its definition."""
    prompts = probes(student)
    pairs = zip(student_logits(student, 1.0, prompts), model_logits(loaded, prompts), strict=True)
    return torch.cat(
        [kl_div(q.double().log_softmax(-1), p.double().softmax(-1), reduction="none").sum(-1) for p, q in pairs]
    )


def updates(folder: Path) -> dict[str, Tensor]:
    """Module name -> B A of an exported adapter at scale 1."""
    state = load_file(folder / "adapter_model.safetensors")
    names = {key.removesuffix(".lora_A.weight") for key in state if key.endswith(".lora_A.weight")}
    return {name: state[f"{name}.lora_B.weight"] @ state[f"{name}.lora_A.weight"] for name in names}


def leftovers(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()] if folder.exists() else []
