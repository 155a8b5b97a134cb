"""What the record and the card of a composed student say: its parts, and how it measured. Numbers alone, no model."""

from dataclasses import dataclass

from heal.evaluation.metrics import DriftFigures, Summary


@dataclass(frozen=True)
class Ingredient:
    """What the record and the card say of a part: its run's name, recipe, trait, seed, number of rounds, rank."""

    run: str
    recipe: str
    trait: str
    seed: int
    rounds: int
    rank: int
    weight: float


@dataclass(frozen=True)
class Measured:
    """The composed student on the held-out prompts of one part's trait.

    Attributes:
        trait: its name.
        base, alone, composed: the signals of base, of that part's student, and of the composed one.
        valid: the signals that are valid for the model.
        drift: KL between base and the composed student on its answers, by divergence.
    """

    trait: str
    base: Summary
    alone: Summary
    composed: Summary
    valid: tuple[str, ...]
    drift: DriftFigures


@dataclass(frozen=True)
class Composition:
    """What an export was made of, and how it measured."""

    parts: tuple[Ingredient, ...]
    measured: tuple[Measured, ...] = ()
