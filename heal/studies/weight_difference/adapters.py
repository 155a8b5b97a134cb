"""Adapters on a base that is restored bit for bit, and the exact difference of the weights that two of them produce.

Shape suffixes: R rank, I inputs, O outputs.
"""

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from peft import PeftConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from heal.errors import UserError
from heal.models.language_model import LanguageModel
from heal.steering.weights import Update

ADAPTER = "trained"

Layers = dict[str, BaseTunerLayer]


class Adapted:
    """A model that carries one adapter.

    Attributes:
        peft_model: the model with the adapter inside.
        layers: the layers of the adapter by the full name of the Linear that each wraps. After the context each
            still has the base weights that it was trained on, in a separate Linear where they differ from the model's.
    """

    def __init__(self, peft_model: PeftModel):
        self.peft_model = peft_model
        self.layers: Layers = {
            name: module
            for name, module in peft_model.base_model.model.named_modules()
            if isinstance(module, BaseTunerLayer)
        }


@contextmanager
def adapted(language_model: LanguageModel, config: PeftConfig, seed: int) -> Iterator[Adapted]:
    """The model with a fresh adapter inside the context; restored bit for bit after it.

    PiSSA moves its initial directions out of the weights themselves; they are restored.

    Args:
        language_model: the base, without adapters.
        config: of the adapter.
        seed: of its initialisation.

    Raises:
        ValueError: the model already carries adapters.
        UserError: its weights are quantised.
    """
    model = language_model.model
    if any(isinstance(module, BaseTunerLayer) for module in model.modules()):
        raise ValueError("adapted: the model already carries adapters")
    linears = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    if any(not module.weight.is_floating_point() for module in linears.values()):
        raise UserError(
            f"{language_model.name}: its weights are quantised, and differences of weights require full precision; "
            "set model.load_4bit=false"
        )
    # Code that changes a weight makes `data` another tensor, so these keep their values.
    weights = {name: module.weight.data for name, module in linears.items()}
    before = set(vars(model))
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            carrier = Adapted(get_peft_model(model, config, adapter_name=ADAPTER))
        yield carrier
        for name, layer in carrier.layers.items():
            if linears[name].weight.data_ptr() != weights[name].data_ptr():
                layer.base_layer = copy.deepcopy(linears[name])
    finally:
        for name, module in linears.items():
            module.weight.data = weights[name]
            parent, _, last = name.rpartition(".")
            setattr(model.get_submodule(parent), last, module)
        for name in set(vars(model)) - before:
            delattr(model, name)


@torch.no_grad()
def effective(layer: BaseTunerLayer) -> tuple[Tensor, Tensor | None]:
    """The effective weight and bias of a Linear with the adapter around it: peft's own merge, on a float64 copy.

    Returns:
        the weight `[O, I]` and the bias `[O]` (None: no bias), float64.
    """
    merged = copy.deepcopy(layer).double()
    merged.merge(safe_merge=True, adapter_names=[ADAPTER])
    linear = merged.get_base_layer()
    return linear.weight.detach(), None if linear.bias is None else linear.bias.detach()


def difference(positive: Mapping[str, BaseTunerLayer], negative: Mapping[str, BaseTunerLayer]) -> dict[str, Update]:
    """The effective weights with one adapter minus those with the other, for every Linear that they wrap.

    Computed in float64, kept in float32. Plain LoRA keeps its factors: `A = [A_+; A_-]`, `B = [s B_+, -s B_-]`.

    Args:
        positive, negative: the layers of two adapters of one kind on one base, by the names of their Linears.
    """
    if positive.keys() != negative.keys():
        raise ValueError("difference: the adapters are not on the same Linears")
    return {name: _update(positive[name], negative[name]) for name in sorted(positive)}


def _update(positive: BaseTunerLayer, negative: BaseTunerLayer) -> Update:
    same_base = positive.get_base_layer() is negative.get_base_layer()  # PiSSA has its own
    if same_base and all(isinstance(layer, LoraLayer) and not layer.lora_variant for layer in (positive, negative)):
        return _stacked(positive, negative)
    (weight_OI, bias_O), (other_OI, other_O) = effective(positive), effective(negative)
    change_O = None
    if bias_O is not None and other_O is not None and not torch.equal(bias_O, other_O):
        change_O = _kept(bias_O - other_O)
    return Update((_kept(weight_OI - other_OI),), change_O)


def _stacked(positive: LoraLayer, negative: LoraLayer) -> Update:
    a_RI = torch.cat([layer.lora_A[ADAPTER].weight.detach() for layer in (positive, negative)], 0)
    b_OR = torch.cat(
        [
            sign * layer.scaling[ADAPTER] * layer.lora_B[ADAPTER].weight.detach()
            for sign, layer in ((1, positive), (-1, negative))
        ],
        1,
    )
    return Update((_kept(a_RI), _kept(b_OR)))


def _kept(tensor: Tensor) -> Tensor:
    return tensor.float().cpu().contiguous().clone()
