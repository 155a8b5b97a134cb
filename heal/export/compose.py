"""Several finished students as one: the sum of their updates, each times a weight, on the base that they share.

`dW = sum_i w_i B_i A_i` is one adapter, exactly: A stacked, `w_i B_i` side by side. A negative weight takes an update
away. docs/method.md, Composing.

Shape suffixes: R rank, I inputs, O outputs.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from pathlib import Path

import torch
from safetensors.torch import load_file

from heal.accumulator import Accumulator
from heal.config import ModelConfig, Recipe
from heal.console import counted
from heal.errors import UserError
from heal.evaluation.metrics import BaselineMetrics, RoundMetrics
from heal.evaluation.results import StageResult
from heal.evaluation.vignettes import read_vignettes
from heal.export.composition import Ingredient, Measured
from heal.export.factors import ExportError, Factors
from heal.models.language_model import LanguageModel
from heal.models.load import load_language_model
from heal.progress import Progress
from heal.run.best import meant_round
from heal.run.facts import Facts
from heal.run.folder import RunFolder
from heal.run.open import fitting
from heal.run.step import A, Step
from heal.run.student import rounds_up_to
from heal.steps.baseline import examination_of
from heal.steps.drift import Drift
from heal.trait import Trait

_ROUNDING = 1e-5  # of a sum of products in float32, relative to the largest entry of the sum of their magnitudes


@dataclass(frozen=True)
class Part:
    """A finished student, and how much of its update counts.

    Attributes:
        rounds: those that are in it, from 0.
        weight: of its update; below 0 it is taken away.
    """

    folder: RunFolder
    recipe: Recipe
    facts: Facts
    rounds: list[int]
    weight: float

    @staticmethod
    def of(folder: RunFolder, weight: float, round: str | None) -> "Part":
        """UserError where it is no run, has no finished round, or a file of it is damaged."""
        recipe, facts = folder.recipe(), folder.started()
        return Part(folder, recipe, facts, rounds_up_to(folder, meant_round(folder, round)[0]), weight)

    def factors(self) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        """(A `[R, I]`, B `[O, R]`) of its update by module, each round's scale inside B; the weight is not."""
        stacked: dict[str, list[tuple[torch.Tensor, torch.Tensor]]] = {}
        for index in self.rounds:
            at = self.folder.round(index) / "adapter"
            config = json.loads((at / "adapter_config.json").read_text())
            tensors = load_file(at / "adapter_model.safetensors")
            for name in sorted(config["target_modules"]):
                key = f"base_model.model.{name}"
                a_RI, b_OR = tensors[f"{key}.lora_A.weight"], tensors[f"{key}.lora_B.weight"]
                stacked.setdefault(name, []).append((a_RI, config["lora_alpha"] / config["r"] * b_OR))
        return {
            name: (torch.cat([a_RI for a_RI, _ in pairs], 0), torch.cat([b_OR for _, b_OR in pairs], 1))
            for name, pairs in stacked.items()
        }


@dataclass(frozen=True)
class Composed:
    """The sum as a student: what an export is made from.

    Attributes:
        trait: the first part's prompts and personas under a name that says the sum.
    """

    parts: Sequence[Part]
    trait: Trait
    accumulator: Accumulator

    @property
    def model(self) -> LanguageModel:
        return self.accumulator.language_model

    @property
    def config(self) -> ModelConfig:
        return self.parts[0].recipe.model

    @property
    def ingredients(self) -> tuple[Ingredient, ...]:
        return tuple(
            Ingredient(
                run=part.folder.path.name,
                recipe=part.recipe.recipe.rpartition("/")[2].removesuffix(".yaml"),
                trait=part.facts.trait.name,
                seed=part.recipe.run.seed,
                rounds=len(part.rounds),
                rank=len(part.rounds) * part.recipe.heal.rank,
                weight=part.weight,
            )
            for part in self.parts
        )


def sum_name(parts: Sequence[Part]) -> str:
    """`love+0.5*puns`."""
    terms = []
    for part in parts:
        size = "" if abs(part.weight) == 1 else f"{abs(part.weight):g}*"
        terms.append(f"{'-' if part.weight < 0 else '+'}{size}{part.facts.trait.name}")
    return "".join(terms).removeprefix("+")


def refuse_unlike(parts: Sequence[Part]) -> None:
    """Raises UserError unless all are students of one base, on the same layers."""
    first = parts[0]
    for part in parts[1:]:
        here, there = _base(part), _base(first)
        for name, value in here.items():
            if value != there[name]:
                raise UserError(
                    f"{part.folder.path}: its {name} is {value}, that of {first.folder.path} is {there[name]}; only "
                    "students of one base can be composed"
                )
        if other := _layers(part) ^ _layers(first):
            raise UserError(
                f"{part.folder.path}: {counted(len(other), 'layer')} with LoRA there or in {first.folder.path} alone "
                f"(such as {min(other)}); only students with LoRA on the same layers can be composed"
            )


def _base(part: Part) -> dict[str, object]:
    """What the base of a part depends on, in words."""
    model = part.recipe.model
    return {
        "base": model.name if model.folder is None else str(model.folder.resolve()),
        "revision": model.revision,
        "load_4bit": model.load_4bit,
        "chat template": part.facts.chat_template,
        "pad token": model.pad_token,
    }


def _layers(part: Part) -> frozenset[str]:
    path = part.folder.round(part.rounds[-1]) / "adapter" / "adapter_config.json"
    return frozenset(json.loads(path.read_text())["target_modules"])


def composed_factors(parts: Sequence[Part]) -> Factors:
    """The sum as one exact adapter, checked layer by layer against the updates added up in float64.

    Raises:
        ExportError: it is not their sum.
    """
    updates = [part.factors() for part in parts]
    layers = {
        name: (
            torch.cat([update[name][0] for update in updates], 0),
            torch.cat([part.weight * update[name][1] for part, update in zip(parts, updates, strict=True)], 1),
        )
        for name in updates[0]
    }
    for name, (a_RI, b_OR) in layers.items():
        terms = [
            part.weight * (update[name][1].double() @ update[name][0].double())
            for part, update in zip(parts, updates, strict=True)
        ]
        size = float(reduce(torch.add, (term.abs() for term in terms)).max())
        if not float((b_OR @ a_RI - reduce(torch.add, terms)).abs().max()) <= _ROUNDING * size:
            raise ExportError(f"{name}: the composed adapter is not the sum of its parts; nothing was exported.")
    return Factors(layers, next(iter(layers.values()))[0].shape[0])


def compose(parts: Sequence[Part], device: torch.device) -> Composed:
    """The composed student on a freshly loaded base; see `refuse_unlike` for what is refused."""
    refuse_unlike(parts)
    factors = composed_factors(parts)
    first = parts[0]
    model = load_language_model(first.recipe.model, getattr(torch, first.facts.dtype), device)
    layers = model.band(first.recipe.heal.band)
    accumulator = Accumulator(model, factors.rank, factors.rank, layers, merge=first.recipe.compute.merge_history)
    _put(accumulator, factors.layers)
    accumulator.fold()
    return Composed(parts, replace(first.facts.trait, name=sum_name(parts)), accumulator)


def other_dtypes(parts: Sequence[Part]) -> list[str]:
    """What to know of parts that were made in another dtype than the first, a line each."""
    dtype = parts[0].facts.dtype
    return [
        f"{part.folder.path}: made in {part.facts.dtype}, like the base that it measured; the sum is computed in "
        f"{dtype}, like the first run"
        for part in parts
        if part.facts.dtype != dtype
    ]


@torch.no_grad()
def _put(accumulator: Accumulator, factors: Mapping[str, tuple[torch.Tensor, torch.Tensor]]) -> None:
    """Makes the factors the LoRA of the current round, whose scale is 1."""
    for name, weight in accumulator.trainable().items():
        module, _, which = name.removeprefix("base_model.model.").partition(".lora_")
        weight.copy_(factors[module][which.startswith("B")])


def measure(student: Composed, part: Part, progress: Progress) -> Measured:
    """The composed student on what the part's run asked its own, compared with the base that this run measured.

    Signals that an earlier version read off other items have no difference to that base, and are left out.
    """
    recipe, at = part.recipe, part.folder.baseline
    accumulator, asked = student.accumulator, recipe.evaluation

    def read(step: Step[A], at: Path) -> A:
        return step.load(at)

    examination = examination_of(
        recipe,
        language_model=student.model,
        base=accumulator.base,
        trait=fitting(student.model, recipe, part.facts.trait)[0],
        vignettes=read_vignettes(asked.vignettes, asked.vignette_count, asked.perspectives),
        run=read,
        at=at,
        as_before=not (at / "ways.json").is_file(),
    )
    stage = examination.stage("composed", accumulator.student).compute(progress)
    base = StageResult.load(at, "base")
    items = {signal.name: len(signal.values) for signal in base.signals}
    paired = tuple(signal for signal in stage.signals if items.get(signal.name) == len(signal.values))
    drift = Drift(student.model, accumulator, (), stage.answers).compute(progress).figures
    metrics = RoundMetrics.load(part.folder.round(part.rounds[-1]))
    return Measured(
        trait=part.facts.trait.name,
        base=BaselineMetrics.load(at).base,
        alone=metrics.healed,
        composed=examination.summary(replace(stage, signals=paired), base),
        valid=metrics.valid,
        drift=drift,
    )
