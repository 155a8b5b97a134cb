"""Heal: this round's LoRA, trained on the kept completions behind the barrier."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from heal.accumulator import Accumulator
from heal.config import Recipe
from heal.evaluation.metrics import TrainingFigures
from heal.generation.collect import Row
from heal.healing.heal import heal
from heal.models.language_model import LanguageModel
from heal.progress import Progress
from heal.records import jsonl_bytes, read_jsonl
from heal.run.files import Files
from heal.run.step import Step

ADAPTER, LOG = "adapter", "training.jsonl"


@dataclass(frozen=True)
class Healed:
    """The trained LoRA as the files of a PEFT adapter folder, and the log of its training."""

    adapter: Files
    log: tuple[dict[str, float], ...]

    def files(self) -> Files:
        return {f"{ADAPTER}/{name}": content for name, content in self.adapter.items()} | {LOG: jsonl_bytes(self.log)}

    @staticmethod
    def load(folder: Path) -> "Healed":
        adapter = {path.name: path.read_bytes() for path in sorted((folder / ADAPTER).iterdir())}
        return Healed(adapter, tuple(read_jsonl(folder / LOG)))

    @property
    def figures(self) -> TrainingFigures:
        """Means over the last epoch's steps, and the last validation loss and divergence if there were any."""
        steps = [entry for entry in self.log if "train/loss" in entry]
        last = [entry for entry in steps if entry["epoch"] > steps[-1]["epoch"] - 1]
        means = {
            name: sum(entry[f"train/{name}"] for entry in last) / len(last)
            for name in ("loss", "ce", "D_mean", "barrier_on")
        }
        validation = next((entry for entry in reversed(self.log) if "eval/loss" in entry), {})
        return TrainingFigures(
            **means,
            D_max=max(entry["train/D_max"] for entry in last),
            validation_ce=validation.get("eval/ce"),
            validation_D=validation.get("eval/D_mean"),
        )


@dataclass(frozen=True)
class Heal(Step[Healed]):
    """Trains `current` of the accumulator, which holds it afterwards.

    Attributes:
        rows: the kept completions.
        scratch: where a temporary folder may be made.
        on_log: gets the log of every optimiser step as it is made.
    """

    language_model: LanguageModel
    accumulator: Accumulator
    rows: Sequence[Row]
    recipe: Recipe
    round_index: int
    scratch: Path
    on_log: Callable[[dict[str, float]], None]

    name = "heal"

    def compute(self, progress: Progress) -> Healed:
        log: list[dict[str, float]] = []

        def keep(entry: dict[str, float]) -> None:
            # Times are left out: the same run leaves the same bytes.
            log.append({name: value for name, value in entry.items() if "per_second" not in name})
            self.on_log(entry)

        heal(
            self.language_model,
            self.accumulator,
            self.rows,
            self.recipe.heal,
            self.round_index,
            self.recipe.run.seed,
            self.recipe.compute.reference_memory * 2**20,
            self.scratch,
            keep,
            progress,
        )
        return Healed(self.accumulator.save_current(), tuple(log))

    def load(self, folder: Path) -> Healed:
        return Healed.load(folder)

    def finding(self, artifact: Healed) -> str:
        figures = artifact.figures
        return (
            f"loss {figures.loss:.3f}, D {figures.D_mean:.2f} nats, barrier on for {figures.barrier_on:.0%} "
            f"(last epoch of {self.recipe.heal.epochs})"
        )
