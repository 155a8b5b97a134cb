"""Heal: this round's LoRA, trained on the kept completions with the barrier."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from heal.accumulator import Accumulator
from heal.config import Recipe
from heal.evaluation.metrics import TrainingFigures
from heal.generation.collect import Completion
from heal.healing.heal import heal
from heal.healing.log import StepLog, log_bytes, read_log
from heal.models.language_model import LanguageModel
from heal.progress import Progress
from heal.run.files import Files
from heal.run.step import Step

ADAPTER, LOG = "adapter", "training.jsonl"


@dataclass(frozen=True)
class Healed:
    """The trained LoRA as the files of a PEFT adapter folder, and the log of its training."""

    adapter: Files
    log: tuple[StepLog, ...]

    def files(self) -> Files:
        return {f"{ADAPTER}/{name}": content for name, content in self.adapter.items()} | {LOG: log_bytes(self.log)}

    @staticmethod
    def load(folder: Path) -> "Healed":
        """UserError where a file is not what `files` wrote."""
        adapter = {path.name: path.read_bytes() for path in sorted((folder / ADAPTER).iterdir())}
        return Healed(adapter, tuple(read_log(folder / LOG)))

    @property
    def figures(self) -> TrainingFigures:
        """Means over the last epoch's steps, and the last validation loss and divergence if there were any."""
        steps = [log for log in self.log if log.phase == "train" and "loss" in log.values]
        last = [log.values for log in steps if log.epoch > steps[-1].epoch - 1]
        names = [name for name in ("loss", "ce", "D_mean", "barrier_on") if name in last[0]]
        means = {name: sum(log[name] for log in last) / len(last) for name in names}
        validation = next((log.values for log in reversed(self.log) if log.phase == "eval"), {})
        return TrainingFigures(
            **means,
            D_max=max(log["D_max"] for log in last) if "D_max" in last[0] else None,
            validation_ce=validation.get("ce"),
            validation_D=validation.get("D_mean"),
            strength=steps[-1].values.get("strength"),
        )


@dataclass(frozen=True)
class Heal(Step[Healed]):
    """Trains `current` of the accumulator, which holds it afterwards.

    Attributes:
        rows: the kept completions.
        scratch: where a temporary folder may be made.
        on_log: gets the log of every optimiser step as it is made.
        start: where the barrier's strength follows D, what it came to in the round before; None: there was none.
    """

    language_model: LanguageModel
    accumulator: Accumulator
    rows: Sequence[Completion]
    recipe: Recipe
    round_index: int
    scratch: Path
    on_log: Callable[[StepLog], None]
    start: float | None = None

    name = "heal"
    load = staticmethod(Healed.load)

    def compute(self, progress: Progress) -> Healed:
        log: list[StepLog] = []

        def keep(step: StepLog) -> None:
            log.append(step)
            self.on_log(step)

        heal(
            self.language_model,
            self.accumulator,
            self.rows,
            self.recipe.heal,
            round_index=self.round_index,
            seed=self.recipe.run.seed,
            reference_bytes=self.recipe.compute.reference_memory * 2**20,
            scratch=self.scratch,
            on_log=keep,
            start=self.start,
            progress=progress,
        )
        return Healed(self.accumulator.save_current(), tuple(log))

    def finding(self, artifact: Healed) -> str:
        figures = artifact.figures
        barrier = "no barrier"
        if figures.D_mean is not None and figures.barrier_on is not None:
            barrier = f"D {figures.D_mean:.2f} nats, barrier on for {figures.barrier_on:.0%}"
            barrier += "" if figures.strength is None else f", lambda {figures.strength:.2f}"
        return f"loss {figures.loss:.3f}, {barrier} (last epoch of {self.recipe.heal.epochs})"
