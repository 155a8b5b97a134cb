"""A difference of weights, applied to a model by a dose without touching its weights.

Shape suffixes: B rows, T positions, R rank, I inputs, O outputs.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.nn.functional import linear

from heal.errors import UserError
from heal.models.language_model import LanguageModel
from heal.run.files import write_atomic
from heal.steering.intervention import ADDITIVE, Coefficient, Dosing
from heal.steering.saving import safetensors_bytes

Kind = Literal["weight_difference", "adapter_gate"]

_DENSE, _FACTORS, _BIAS = ("W",), ("A", "B"), "b"  # what a file calls an update's tensors


@dataclass(frozen=True, eq=False)
class Update:
    """What a Linear's weight is changed by, float32 on the CPU.

    Attributes:
        factors: `(dW [O, I],)`, or `(A [R, I], B [O, R])` where `dW = B A`.
        bias_O: what its bias is changed by; None: nothing.
    """

    factors: tuple[Tensor, ...]
    bias_O: Tensor | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """(O, I)."""
        return self.factors[-1].shape[0], self.factors[0].shape[1]

    def weight(self) -> Tensor:
        """`dW`, `[O, I]`, float32."""
        if len(self.factors) == 1:
            return self.factors[0]
        a_RI, b_OR = self.factors
        return (b_OR.double() @ a_RI.double()).float()

    def squared_norm(self) -> float:
        """`||dW||^2` (Frobenius), without `dW` where it has factors."""
        if len(self.factors) == 1:
            return float(self.factors[0].double().square().sum())
        a_RI, b_OR = (factor.double() for factor in self.factors)
        return max(0.0, float(((b_OR.T @ b_OR) * (a_RI @ a_RI.T)).sum()))

    def of(self, x_BTI: Tensor) -> Tensor:
        """`dW x` and the bias's change, `[B, T, O]`, float32, on the device of `x`."""
        here = self._on(x_BTI.device)
        h = x_BTI.float()
        for factor in here.factors:
            h = linear(h, factor)
        return h if here.bias_O is None else h + here.bias_O

    def _on(self, device: torch.device) -> "Update":
        """The same on a device; it goes there once."""
        if device not in self._placed:
            factors = tuple(factor.to(device) for factor in self.factors)
            self._placed[device] = Update(factors, None if self.bias_O is None else self.bias_O.to(device))
        return self._placed[device]

    @cached_property
    def _placed(self) -> dict[torch.device, "Update"]:
        return {}


@dataclass(frozen=True)
class WeightDifference:
    """`y <- y + c dW x` at the output of each of its Linears: the model with the weights `W + c dW`.

    `W` itself is not touched: it is the same bit for bit afterwards, and rows with different coefficients
    share a pass.

    Attributes:
        updates: what each Linear's weight is changed by, by its full name in the plain transformers model.
        kind: "weight_difference" between two trained models, or "adapter_gate": a finished student's whole update.
        model: name of the model that it belongs to.
        trait: name of the trait.
        c_star: the calibrated coefficient, once known.
        settings: what it was made with.
    """

    updates: dict[str, Update]
    kind: Kind
    model: str
    trait: str
    c_star: float | None = None
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def dosing(self) -> Dosing:
        """Additive: coefficient 0 does nothing, and there is no largest one."""
        return ADDITIVE

    @property
    def norm(self) -> float:
        """Frobenius norm of all `dW` together."""
        return sum(update.squared_norm() for update in self.updates.values()) ** 0.5

    @contextmanager
    def applied(self, language_model: LanguageModel, coefficient: Coefficient) -> Iterator[None]:
        """Adds `coefficient` times `dW x` to the output of each of its Linears inside the context.

        Computed in float32, and rounded to the output's dtype once.

        Args:
            language_model: the model to shift, with adapters inside it or without.
            coefficient: one number, or one for each row of the batches that run inside.

        Raises:
            UserError: the difference does not fit the model.
        """
        self.check_fits(language_model)
        c_B = torch.as_tensor(coefficient, dtype=torch.float32, device=language_model.device).reshape(-1)
        with ExitStack() as stack:
            for name, update in self.updates.items():
                hook = _adder(update, c_B)
                stack.callback(linear_at(language_model, name).register_forward_hook(hook).remove)
            yield

    def check_fits(self, language_model: LanguageModel) -> None:
        """Raises UserError when the model has another name, lacks one of the Linears, or has one of another shape."""
        if self.model != language_model.name:
            raise UserError(f"a weight difference of model '{self.model}' was applied to '{language_model.name}'")
        for name, update in self.updates.items():
            module = linear_at(language_model, name)
            shape = (module.out_features, module.in_features)
            if update.shape != shape:
                raise UserError(
                    f"a weight difference of shape {list(update.shape)} does not fit {name} of {language_model.name}, "
                    f"whose weight is {list(shape)}"
                )

    def with_c_star(self, c_star: float) -> "WeightDifference":
        """The same difference with its calibrated coefficient."""
        return replace(self, c_star=c_star)

    def to_bytes(self) -> bytes:
        """A safetensors file's bytes, metadata included; the same difference gives the same bytes.

        Each tensor stands under `module:W` (dense), or `module:A` and `module:B`, and `module:b` for the bias.
        """
        metadata = {
            "kind": self.kind,
            "model": self.model,
            "trait": self.trait,
            "c_star": json.dumps(self.c_star),
            "settings": json.dumps(self.settings, sort_keys=True),
        }
        tensors: dict[str, Tensor] = {}
        for name, update in sorted(self.updates.items()):
            names = _DENSE if len(update.factors) == 1 else _FACTORS
            tensors |= {f"{name}:{part}": factor for part, factor in zip(names, update.factors, strict=True)}
            if update.bias_O is not None:
                tensors[f"{name}:{_BIAS}"] = update.bias_O
        return safetensors_bytes(tensors, metadata)

    def save(self, path: str | Path) -> None:
        """Writes `to_bytes`, whole, to a file whose folder is made if need be."""
        write_atomic(Path(path).expanduser(), self.to_bytes())

    @staticmethod
    def load(path: str | Path) -> "WeightDifference":
        """Reads a difference.

        Raises:
            UserError: not a safetensors file, or not one that `to_bytes` wrote.
        """
        parts: dict[str, dict[str, Tensor]] = {}
        try:
            with safe_open(Path(path).expanduser(), framework="pt") as file:
                metadata = file.metadata() or {}
                kind: Kind = metadata["kind"]
                if kind not in get_args(Kind):
                    raise ValueError(f"unknown kind '{kind}'")
                for name in file.keys():  # noqa: SIM118
                    module, _, part = name.rpartition(":")
                    parts.setdefault(module, {})[part] = file.get_tensor(name)
            if not parts:
                raise ValueError("no weights")
            return WeightDifference(
                updates={name: _update(name, parts[name]) for name in sorted(parts)},
                kind=kind,
                model=metadata["model"],
                trait=metadata["trait"],
                c_star=json.loads(metadata["c_star"]),
                settings=json.loads(metadata["settings"]),
            )
        except (SafetensorError, KeyError, ValueError, OSError) as error:
            raise UserError(f"{path}: not a weight difference of heal ({' '.join(str(error).split())})") from error


def linear_at(language_model: LanguageModel, name: str) -> nn.Module:
    """The Linear of that full name, or the layer of adapters that peft has put in its place.

    Raises:
        UserError: the model has no such Linear.
    """
    try:
        module = language_model.model.get_submodule(name)
    except AttributeError as error:
        raise UserError(f"a weight difference for {name} does not fit {language_model.name}: {error}") from error
    if not isinstance(module, nn.Linear | BaseTunerLayer):
        raise UserError(f"a weight difference for {name} does not fit {language_model.name}: that is no Linear there")
    return module


def _update(name: str, parts: dict[str, Tensor]) -> Update:
    """An update from a file's tensors; ValueError where they are not one."""
    names = _DENSE if _DENSE[0] in parts else _FACTORS
    if parts.keys() - {_BIAS} != set(names):
        raise ValueError(f"'{name}' has the parts {', '.join(sorted(parts))}")
    factors, bias_O = tuple(parts[part] for part in names), parts.get(_BIAS)
    chain = all(factor.ndim == 2 for factor in factors) and all(
        earlier.shape[0] == later.shape[1] for earlier, later in pairwise(factors)
    )
    if not chain or (bias_O is not None and bias_O.shape != factors[-1].shape[:1]):
        raise ValueError(f"the parts of '{name}' do not fit each other")
    if any(tensor.dtype != torch.float32 for tensor in parts.values()):
        raise ValueError(f"'{name}' is not float32")
    return Update(factors, bias_O)


def _adder(update: Update, c_B: Tensor) -> Callable:
    """A forward hook that adds `c` times an update's output; what comes out has the dtype that came in."""

    def add(module: nn.Module, inputs: tuple[Tensor, ...], y_BTO: Tensor) -> Tensor:
        c = c_B[:, None, None]
        if y_BTO.ndim == 2:  # rows and positions flattened, as OPT does in its MLP
            c = c_B.repeat_interleave(len(y_BTO) // len(c_B))[:, None] if len(c_B) > 1 else c_B
        return (y_BTO + c * update.of(inputs[0])).to(y_BTO.dtype)

    return add
