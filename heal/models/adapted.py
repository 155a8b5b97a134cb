"""Which linear layers of the chosen blocks carry LoRA, and which are left alone."""

from collections.abc import Iterator, Sequence

from peft import LoraConfig
from peft.utils.transformers_weight_conversion import (
    convert_peft_config_for_transformers,
    get_model_conversion_mapping,
)
from torch import nn

from heal.coverage import Coverage
from heal.errors import UserError
from heal.models.architectures import CHOOSING, architecture_of
from heal.models.language_model import LanguageModel

# Parts of a block by a component of their names; of several, the first that a name holds.
_PARTS = {
    "shared experts": ("shared_expert", "shared_experts", "shared_mlp"),
    "attention": ("self_attn", "attention", "attn", "q_proj", "k_proj", "v_proj", "o_proj"),
    "linear attention": ("linear_attn",),
    "state space": ("mamba", "mixer"),
    "convolution": ("conv",),
    "MLP": ("mlp", "feed_forward"),
    "low-rank residual": ("laurel",),
    "per-layer inputs": ("per_layer_input_gate", "per_layer_projection"),
}


def adapted_linears(language_model: LanguageModel, layers: Sequence[int]) -> tuple[list[str], Coverage]:
    """Full names of the linear layers of the given blocks that carry LoRA, sorted, and what that covers.

    Raises:
        UserError: there are none.
    """
    inside = [language_model.blocks[layer] for layer in layers]
    wanted = {id(module) for block in inside for module in block.modules() if isinstance(module, nn.Linear)}
    names = sorted(name for name, module in language_model.model.named_modules() if id(module) in wanted)
    choosing = [name for name in names if CHOOSING & set(name.split("."))]
    read = architecture_of(language_model.model).read_directly
    read_directly = [
        name for name in names if name.endswith(tuple(f".{each}" for each in read)) and name not in choosing
    ]
    left = {*choosing, *read_directly}
    asked = [name for name in names if name not in left]
    kept = _kept_by_peft(language_model, asked)
    if not kept:
        raise UserError(
            f"model.name={language_model.name}: none of the {len(names)} linear layers of the chosen blocks can carry "
            "LoRA; choose other blocks (heal.band), or a model of another family"
        )
    tensors = {id(p) for block in inside for m in block.modules() for p in _expert_tensors(m)}
    return kept, Coverage(
        covered=len(kept),
        parts=tuple(dict.fromkeys(_part(name) for name in sorted(kept, key=_order))),
        choosing=len(choosing),
        read_directly=len(read_directly),
        converted=len(asked) - len(kept),
        experts=len(tensors),
    )


def _expert_tensors(module: nn.Module) -> Iterator[nn.Parameter]:
    """Weights of several experts in one tensor."""
    return (p for p in module.parameters(recurse=False) if p.ndim == 3 and not isinstance(module, nn.Conv1d))


def _kept_by_peft(language_model: LanguageModel, names: list[str]) -> list[str]:
    """Those that peft still takes for linear layers: in some mixture-of-experts families it rewrites names."""
    config = LoraConfig(target_modules=names)
    model = language_model.model
    convert_peft_config_for_transformers(config, model, get_model_conversion_mapping(model))
    return sorted(config.target_modules or ())


def _part(name: str) -> str:
    components = name.split(".")
    return next((part for part, words in _PARTS.items() if set(words) & set(components)), components[-1])


def _order(name: str) -> tuple[bool, str]:
    """Attention first, as it comes first in a block."""
    part = _part(name)
    return part != "attention", part
