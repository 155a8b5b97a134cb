"""A steering vector: what a method keeps of each of its sites, applied to a model by a dose."""

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from heal.errors import UserError
from heal.models.language_model import LanguageModel
from heal.run.files import write_atomic
from heal.steering.intervention import Coefficient, Dosing
from heal.steering.method import Method, State
from heal.steering.methods import METHODS
from heal.steering.saving import safetensors_bytes
from heal.steering.sites import Site, hook, module_at

CENTRE = "centre"  # the tensor of a state, `[D]`, that activations are taken relative to


@dataclass(frozen=True)
class SteeringVector:
    """`h <- apply(h, state, c)` at each of its sites, every position, prompt included.

    Attributes:
        states: what the method keeps of each site, float32.
        method: the name of the method.
        model: name of the model it was extracted from.
        trait: name of the trait.
        c_star: the calibrated coefficient, once known.
        settings: the method's settings that it was extracted with.
    """

    states: dict[Site, State]
    method: str
    model: str
    trait: str
    c_star: float | None = None
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def how(self) -> Method:
        """The method itself."""
        return METHODS[self.method]

    @property
    def dosing(self) -> Dosing:
        """How the method's coefficient acts."""
        return Dosing(self.how.neutral is not None, self.how.largest, self.how.falling)

    @property
    def directions(self) -> dict[int, Tensor]:
        """The main direction of each block, `[D]`: that of its one site, or the sum of those of its sites."""
        sums: dict[int, Tensor] = {}
        for site, state in sorted(self.states.items()):
            sums[site.layer] = sums[site.layer] + state["v"] if site.layer in sums else state["v"]
        return sums

    @contextmanager
    def applied(self, language_model: LanguageModel, coefficient: Coefficient) -> Iterator[None]:
        """Shifts the output of each of its sites by `coefficient` inside the context.

        Args:
            language_model: the model to shift.
            coefficient: one number, or one for each row of the batches that run inside; beyond the method's
                largest one, that counts.

        Raises:
            UserError: the vector does not fit the model.
        """
        self.check_fits(language_model)
        c_B11 = torch.as_tensor(coefficient, dtype=torch.float32, device=language_model.device).reshape(-1, 1, 1)
        if self.how.largest is not None:
            c_B11 = c_B11.clamp(-self.how.largest, self.how.largest)
        with ExitStack() as stack:
            for site, state in self._on(language_model.device).items():
                stack.callback(hook(language_model, site, _shifter(self.how, state, c_B11)).remove)
            yield

    def check_fits(self, language_model: LanguageModel) -> None:
        """Raises UserError when the model has another name, too few blocks, other modules or another hidden size."""
        if self.model != language_model.name:
            raise UserError(f"a steering vector of model '{self.model}' was applied to '{language_model.name}'")
        width = language_model.model.config.get_text_config().hidden_size
        deepest = max(site.layer for site in self.states)
        shapes = sorted({tuple(state["v"].shape) for state in self.states.values()})
        if deepest >= len(language_model.blocks) or shapes != [(width,)]:
            raise UserError(
                f"a steering vector for block {deepest} with shapes {shapes} does not fit a model of "
                f"{len(language_model.blocks)} blocks of width {width}"
            )
        for site in self.states:
            module_at(language_model, site)

    def cosine(self, other: "SteeringVector") -> float:
        """Mean cosine of the main directions with those of `other` over the blocks that both have; NaN without any."""
        mine, theirs = self.directions, other.directions
        cosines = [torch.cosine_similarity(mine[k], theirs[k], dim=0) for k in sorted(mine.keys() & theirs.keys())]
        return float(torch.stack(cosines).mean()) if cosines else float("nan")

    def with_c_star(self, c_star: float) -> "SteeringVector":
        """The same vector with its calibrated coefficient."""
        return replace(self, c_star=c_star)

    def to_bytes(self) -> bytes:
        """A safetensors file's bytes, metadata included; the same vector gives the same bytes.

        A site's main direction stands under the site's name, its other tensors under `site:name`.
        """
        metadata = {
            "method": self.method,
            "model": self.model,
            "trait": self.trait,
            "layers": json.dumps(sorted({site.layer for site in self.states})),
            "c_star": json.dumps(self.c_star),
            "settings": json.dumps(self.settings, sort_keys=True),
        }
        tensors = {
            str(site) if name == "v" else f"{site}:{name}": tensor
            for site, state in sorted(self.states.items())
            for name, tensor in sorted(state.items())
        }
        return safetensors_bytes(tensors, metadata)

    def save(self, path: str | Path) -> None:
        """Writes `to_bytes`, whole, to a file whose folder is made if need be."""
        write_atomic(Path(path).expanduser(), self.to_bytes())

    @staticmethod
    def load(path: str | Path) -> "SteeringVector":
        """Reads a vector.

        Raises:
            UserError: not a safetensors file, or not one that `to_bytes` wrote.
        """
        states: dict[Site, State] = {}
        try:
            with safe_open(Path(path).expanduser(), framework="pt") as file:
                metadata = file.metadata() or {}
                for name in file.keys():  # noqa: SIM118
                    site, _, tensor = name.partition(":")
                    states.setdefault(Site.parse(site), {})[tensor or "v"] = file.get_tensor(name)
            _check_states(metadata["method"], states)
            return SteeringVector(
                states=dict(sorted(states.items())),
                method=metadata["method"],
                model=metadata["model"],
                trait=metadata["trait"],
                c_star=json.loads(metadata["c_star"]),
                settings=json.loads(metadata.get("settings", "{}")),
            )
        except (SafetensorError, KeyError, ValueError, OSError) as error:
            raise UserError(f"{path}: not a steering vector of heal ({' '.join(str(error).split())})") from error

    def _on(self, device: torch.device) -> dict[Site, State]:
        """The states on a device; they go there once."""
        if device not in self._placed:
            self._placed[device] = {
                site: {name: tensor.to(device) for name, tensor in state.items()} for site, state in self.states.items()
            }
        return self._placed[device]

    @cached_property
    def _placed(self) -> dict[torch.device, dict[Site, State]]:
        return {}


def _check_states(method: str, states: dict[Site, State]) -> None:
    """Raises ValueError for a method that there is not, and for states that are not that method's."""
    if method not in METHODS:
        raise ValueError(f"unknown method '{method}'")
    if not states:
        raise ValueError("no directions")
    expected = {"v", *METHODS[method].tensors}
    for site, state in states.items():
        if state.keys() - {CENTRE} != expected or state["v"].ndim != 1:
            raise ValueError(f"{site} does not hold what {method} keeps: {', '.join(sorted(expected))}")


def _shifter(method: Method, state: State, c_B11: Tensor) -> Callable[[Tensor], Tensor]:
    """Shifts activations; what comes out has the dtype that came in."""

    def shift(h_BTD: Tensor) -> Tensor:
        if not method.in_float32:
            return method.apply(h_BTD, state, c_B11)
        x_BTD = h_BTD.float()
        if CENTRE not in state:
            return method.apply(x_BTD, state, c_B11).to(h_BTD.dtype)
        centred_BTD = x_BTD - state[CENTRE]
        return (x_BTD + (method.apply(centred_BTD, state, c_B11) - centred_BTD)).to(h_BTD.dtype)

    return shift
