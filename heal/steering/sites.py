"""Where a method acts: a block's output, or the output of a Linear inside it; and the weights of those Linears."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from heal.errors import UserError
from heal.models.architectures import residual, with_residual
from heal.models.language_model import LanguageModel
from heal.models.spread import whole
from heal.steering.method import Method

# The Linears of a block by name, as Llama, Qwen 2 and 3, and Gemma 2 and 3 have them.
WRITERS = ("self_attn.o_proj", "mlp.down_proj")  # write to the residual stream, in the order of the forward pass
READERS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.gate_proj", "mlp.up_proj")


class Site(NamedTuple):
    """Where activations are read and shifted: the output of a block, or that of one of its modules."""

    layer: int
    module: str = ""

    def __str__(self) -> str:
        return ".".join(["block", str(self.layer), *([self.module] if self.module else [])])

    @staticmethod
    def parse(name: str) -> "Site":
        """The site that `str` wrote; ValueError for anything else."""
        kind, layer, *module = name.split(".", 2)
        if kind != "block" or not layer.isdecimal():
            raise ValueError(f"'{name}' names no block")
        return Site(int(layer), *module)


def sites_of(language_model: LanguageModel, method: Method, layers: Sequence[int]) -> list[Site]:
    """The sites of a method in the given blocks, in the order of the forward pass.

    Raises:
        UserError: the method needs Linears that the model's blocks do not have.
    """
    if method.basis != "none":
        for layer in layers:
            linears(language_model, layer)
    modules = WRITERS if method.site == "writer" else ("",)
    return [Site(layer, module) for layer in sorted(layers) for module in modules]


def module_at(language_model: LanguageModel, site: Site) -> nn.Module:
    """The module whose output a site is.

    Raises:
        UserError: the model has no such block or module.
    """
    try:
        return language_model.blocks[site.layer].get_submodule(site.module)
    except (AttributeError, IndexError) as error:
        raise UserError(f"a steering vector for {site} does not fit {language_model.name}: {error}") from error


def hook(language_model: LanguageModel, site: Site, act: Callable[[Tensor], Tensor | None]) -> RemovableHandle:
    """Gives `act` the activations `[B, T, D]` of a site in every forward pass, until the handle is removed.

    What it returns takes their place; None leaves them. At a block they are the residual stream, whatever the block
    returns beside it (heal/models/architectures.py).

    Raises:
        UserError: the model has no such block or module.
    """
    model = language_model.model

    def on_output(module: nn.Module, inputs: Any, output: Any) -> Any:
        if site.module:
            return act(output)
        h_BTD = act(residual(model, output))
        return None if h_BTD is None else with_residual(model, output, h_BTD)

    return module_at(language_model, site).register_forward_hook(on_output)


def linears(language_model: LanguageModel, layer: int) -> dict[str, nn.Module]:
    """The Linears of a block by name, each of WRITERS and READERS; those that carry adapters as the wrapped ones.

    Raises:
        UserError: one of them is missing, or the block has a Linear that is neither, or one without a plain weight.
    """
    modules: dict[str, nn.Module] = {}
    for name, module in language_model.blocks[layer].named_modules():
        inside_another = any(name.startswith(f"{outer}.") for outer in modules)
        if isinstance(module, nn.Linear | LoraLayer) and not inside_another:
            modules[name] = module
    where = f"block {layer} of {language_model.name}"
    known = (*WRITERS, *READERS)
    if strange := [name for name in modules if name not in known]:
        raise UserError(
            f"{where}: '{strange[0]}' is a Linear of which heal does not know how it meets the residual stream "
            f"(known: {', '.join(known)}); use a steering method that acts on the block's output"
        )
    if missing := [name for name in known if name not in modules]:
        raise UserError(
            f"{where}: no Linear named '{missing[0]}'; use a steering method that acts on the block's output"
        )
    for name, module in modules.items():
        weight = base_of(module).weight
        if not weight.is_floating_point() or weight.ndim != 2:
            raise UserError(f"{where}: the weight of '{name}' is quantised, and its modes are not to be had from that")
    return modules


def base_of(module: nn.Module) -> nn.Linear:
    """A Linear without the adapters around it."""
    base = module.get_base_layer() if isinstance(module, LoraLayer) else module
    assert isinstance(base, nn.Linear)
    return base


@torch.no_grad()
def weight_in_force(module: nn.Module) -> Tensor:
    """What a Linear multiplies with as it stands, `[O, I]`, float64, on the CPU: its weight and its active adapters.

    The base layer's weight alone would depend on whether the history is merged into it.
    """
    weight_OI = whole(base_of(module).weight).double().cpu()
    if isinstance(module, LoraLayer):
        for adapter in module.active_adapters:
            weight_OI = weight_OI + module.get_delta_weight(adapter).double().cpu()
    return weight_OI


def bias_of(module: nn.Module) -> Tensor | None:
    """The bias of a Linear, on the CPU; None: it has none."""
    bias = base_of(module).bias
    return None if bias is None else whole(bias).detach().cpu()


def band_gram(language_model: LanguageModel, layers: Sequence[int]) -> Tensor:
    """`sum W W^T` over the Linears of `layers` that write to the residual stream, `+ sum W^T W` over those that read.

    Returns:
        `[D, D]`, float64.
    """
    width = language_model.model.config.get_text_config().hidden_size
    gram_DD = torch.zeros(width, width, dtype=torch.float64)
    for layer in layers:
        for name, module in linears(language_model, layer).items():
            weight_OI = weight_in_force(module)
            gram_DD += weight_OI @ weight_OI.T if name in WRITERS else weight_OI.T @ weight_OI
    return gram_DD
