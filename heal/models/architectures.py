"""Where architectures differ from Llama in what heal reads and changes: one table, by the text config's model_type.

Whatever stands in no table is taken to be like Llama, and tested when a model is loaded (`check_supported`).

Shape suffixes: S streams, B rows, T positions, D hidden size.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn
from transformers import DynamicCache, PretrainedConfig, PreTrainedModel
from transformers.cache_utils import LinearAttentionCacheLayerMixin

from heal.errors import UserError

# Modules that choose experts, tokens or streams: their outputs are compared or sorted, so no LoRA goes on them.
CHOOSING = frozenset({"router", "gate", "shared_expert_gate", "indexer", "altup"})


@dataclass(frozen=True)
class Architecture:
    """What heal must know of one.

    Attributes:
        decoder: path of the stack of blocks below `get_decoder()`, where that returns more than the stack.
        output: what a block returns: its output; a tuple of which it is the first; or streams `[S, B, T, D]` of
            which the block itself computes the one that the config's `altup_active_idx` names.
        multiplied_by, divided_by: keys of the config by which logits are scaled after the head.
        read_directly: Linears whose weights code or a fused kernel reads without calling them, past any LoRA.
    """

    decoder: str = ""
    output: Literal["tensor", "first of a tuple", "active stream"] = "tensor"
    multiplied_by: str = ""
    divided_by: str = ""
    read_directly: tuple[str, ...] = ()


_LLAMA = Architecture()
_GRANITE = Architecture(divided_by="logits_scaling")
_COHERE = Architecture(multiplied_by="logit_scale")
ARCHITECTURES: Mapping[str, Architecture] = {
    "bamba": Architecture(output="first of a tuple", read_directly=("mamba.out_proj",)),
    "cohere": _COHERE,
    "cohere2": _COHERE,
    "cohere2_moe": _COHERE,
    "falcon_h1": Architecture(
        output="first of a tuple", multiplied_by="lm_head_multiplier", read_directly=("mamba.out_proj",)
    ),
    "gemma3n_text": Architecture(output="active stream"),
    "glm_moe_dsa": Architecture(output="first of a tuple"),
    "granite": _GRANITE,
    "granite_swa": _GRANITE,
    "granitemoe": _GRANITE,
    "granitemoe_swa": _GRANITE,
    "granitemoehybrid": Architecture(divided_by="logits_scaling", read_directly=("mamba.out_proj",)),
    "granitemoeshared": _GRANITE,
    "hyperclovax": Architecture(multiplied_by="logits_scaling"),
    "jamba": Architecture(read_directly=("mamba.dt_proj",)),
    "llama4_text": Architecture(decoder="model"),
    "nemotron_h": Architecture(read_directly=("mixer.out_proj",)),
}

_NAMED_BLOCKS = "its blocks are not in a list named 'layers' of its decoder"
_STATE_SPACE = "a pure state-space model: it takes its states under another name than a cache of keys and values"
REFUSED: Mapping[str, str] = {
    "bloom": _NAMED_BLOCKS,
    "codegen": _NAMED_BLOCKS,
    "falcon": _NAMED_BLOCKS,
    "falcon_mamba": _STATE_SPACE,
    "gpt2": "its layers are Conv1D, not the Linears that LoRA is put on",
    "gpt_bigcode": _NAMED_BLOCKS,
    "gpt_neo": _NAMED_BLOCKS,
    "gptj": _NAMED_BLOCKS,
    "mamba": _STATE_SPACE,
    "mamba2": _STATE_SPACE,
    "minimax": "it keeps its linear attention in a cache of its own (MiniMaxCache), whose rows cannot leave a batch",
    "mpt": _NAMED_BLOCKS,
}


def refuse_unsupported(name: str, config: PretrainedConfig) -> None:
    """Raises UserError, before any weights are loaded, for an architecture known not to work."""
    kind = config.get_text_config().model_type
    if kind in REFUSED:
        raise UserError(
            f"model.name={name}: architecture '{kind}' is not supported ({REFUSED[kind]}); choose a model of another "
            "family (docs/support.md)"
        )


def architecture_of(model: PreTrainedModel) -> Architecture:
    """The entry of the model's text decoder; Llama's where there is none."""
    return ARCHITECTURES.get(model.config.get_text_config().model_type, _LLAMA)


def decoder_of(model: PreTrainedModel) -> nn.Module:
    """The stack of blocks with embedding and final norm."""
    decoder: nn.Module = model.get_decoder()
    path = architecture_of(model).decoder
    return decoder.get_submodule(path) if path else decoder


def blocks_of(model: PreTrainedModel) -> nn.ModuleList:
    """The decoder's blocks."""
    blocks = decoder_of(model).layers
    assert isinstance(blocks, nn.ModuleList)
    return blocks


def logit_factor(model: PreTrainedModel) -> float:
    """What the head's output is multiplied by, before any soft cap."""
    architecture, config = architecture_of(model), model.config.get_text_config()
    if architecture.multiplied_by:
        return float(getattr(config, architecture.multiplied_by))
    return 1 / float(getattr(config, architecture.divided_by)) if architecture.divided_by else 1.0


def residual(model: PreTrainedModel, output: Any) -> Tensor:
    """The residual stream `[B, T, D]` in what a block returned."""
    kind = architecture_of(model).output
    if kind == "active stream":
        return output[model.config.get_text_config().altup_active_idx]
    return output[0] if kind == "first of a tuple" else output


def with_residual(model: PreTrainedModel, output: Any, h_BTD: Tensor) -> Any:
    """What a block returned, with another residual stream in it."""
    kind = architecture_of(model).output
    if kind == "active stream":
        changed_SBTD = output.clone()
        changed_SBTD[model.config.get_text_config().altup_active_idx] = h_BTD
        return changed_SBTD
    return (h_BTD, *output[1:]) if kind == "first of a tuple" else h_BTD


def empty_cache(model: PreTrainedModel) -> DynamicCache:
    """A cache with the layers that the text decoder needs."""
    return DynamicCache(config=model.config.get_text_config())


def is_recurrent(model: PreTrainedModel) -> bool:
    """Whether a layer carries a state from token to token: in the order of the tokens, whatever a mask says."""
    return any(isinstance(layer, LinearAttentionCacheLayerMixin) for layer in empty_cache(model).layers)


def window(model: PreTrainedModel) -> int | None:
    """Tokens that the shortest sliding window or chunk of a layer holds; None: every layer sees everything."""
    windows = [layer.sliding_window for layer in empty_cache(model).layers if hasattr(layer, "sliding_window")]
    return min(windows, default=None)
