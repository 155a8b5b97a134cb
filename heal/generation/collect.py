"""Samples completions under steering, filters them, and walks the dose down when too few survive."""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from heal.config import FilterConfig, GenerationConfig
from heal.errors import RoundError
from heal.evaluation.metrics import DoseLine, GenerationFigures
from heal.progress import Progress, silent
from heal.records import json_bytes, read_json, read_records, records_bytes
from heal.run.files import Files

ROWS, SUMMARY = "completions.jsonl", "collection.json"


@dataclass(frozen=True)
class Completion:
    """One completion and what became of it.

    Attributes:
        index: number of the completion in the round; its randomness derives from it.
        prompt: the user message.
        alpha: its dose, as a multiple of c_star.
        prompt_ids, ids: what the model read and what it sampled.
        text: the completion as text.
        ended: whether it ended within the token budget.
        tail_perplexity: under base, of its last quarter (NaN when it has no tokens).
        repetition: see `filters.repetition`.
        dropped: the reasons; empty when it is kept.
        thought: ids of what was thought first, which `prompt_ids` end in; none: the model was not to think.
        on_prompt: how much of the information that names its prompt it carries, under base: 1 when certain, 0 at chance
            (`Relevance.share`); NaN where it was not asked.
    """

    index: int
    prompt: str
    alpha: float
    prompt_ids: tuple[int, ...]
    ids: tuple[int, ...]
    text: str
    ended: bool
    tail_perplexity: float
    repetition: float
    dropped: tuple[str, ...]
    on_prompt: float = math.nan
    thought: tuple[int, ...] = ()

    @property
    def kept(self) -> bool:
        return not self.dropped


@dataclass(frozen=True)
class Request:
    """One completion to be made: a prompt at a dose."""

    index: int
    prompt: str
    alpha: float


Cell = tuple[str, float]  # a prompt at a dose, as it was asked for

# Makes and filters the completions of some requests, given the texts kept so far.
Sample = Callable[[Sequence[Request], Sequence[str]], list[Completion]]


@dataclass(frozen=True)
class Plan:
    """What a round samples, and how much of it must survive the filter.

    Attributes:
        alphas: doses asked for, multiples of c_star.
        probe: completions of a probe, rounded up to whole prompts.
        max_probes: probes after the first.
        lowest_dose: the smallest scale of the doses that is tried.
        keep_target: fraction that must survive a probe.
        keep_floor: fraction of all completions under which the round stops.
        min_train: number of kept ones under which the round stops.
        keep: number of kept ones up to which prompts are sampled again; 0: each once at every dose.
        most: completions made at most for that.
    """

    alphas: Sequence[float]
    probe: int
    max_probes: int
    lowest_dose: float
    keep_target: float
    keep_floor: float
    min_train: int
    keep: int = 0
    most: int = 0

    @staticmethod
    def of(generation: GenerationConfig, limits: FilterConfig) -> "Plan":
        """The recipe's."""
        return Plan(
            generation.alphas,
            generation.probe,
            generation.max_probes,
            generation.lowest_dose,
            limits.keep_target,
            limits.keep_floor,
            limits.min_train,
            generation.keep,
            int(generation.keep * generation.tries),
        )


@dataclass(frozen=True)
class Collection:
    """All completions of a round.

    Attributes:
        rows: the completions.
        scale: what the dose was walked down to (1: as asked).
        off_prompt_below: the least `on_prompt` of a kept completion; 0 where nobody could be held to one, None where
            the filter did not ask for it.
        asked: the number of kept completions that was asked for; 0: none was.
    """

    rows: tuple[Completion, ...]
    scale: float
    off_prompt_below: float | None = None
    asked: int = 0

    @property
    def kept(self) -> list[Completion]:
        return [row for row in self.rows if row.kept]

    @property
    def figures(self) -> GenerationFigures:
        """What was sampled and what was kept, in numbers."""
        kept = self.kept
        return GenerationFigures(
            made=len(self.rows),
            kept=len(kept),
            kept_share=len(kept) / len(self.rows),
            ended_share=sum(row.ended for row in kept) / len(kept),
            doses=dose_table(self.rows),
            dropped=drops(self.rows),
            asked=self.asked,
        )

    def files(self) -> Files:
        doses = [asdict(line) for line in dose_table(self.rows)]
        summary = {"scale": self.scale, "doses": doses, "off_prompt_below": self.off_prompt_below}
        summary |= {"asked": self.asked}
        return {ROWS: records_bytes(self.rows), SUMMARY: json_bytes(summary)}

    @staticmethod
    def load(folder: Path) -> "Collection":
        """UserError where a file is not what `files` wrote."""
        summary = read_json(folder / SUMMARY)
        rows = tuple(read_records(Completion, folder / ROWS))
        return Collection(rows, float(summary["scale"]), summary.get("off_prompt_below"), summary.get("asked", 0))


def collect(make: Sample, prompts: Sequence[str], plan: Plan, progress: Progress = silent) -> Collection:
    """Every prompt at every dose; the doses are scaled down first if a probe keeps too few.

    A probe takes the first prompts at all doses. If fewer than `plan.keep_target` of it survive, the scale is bisected
    in log between `plan.lowest_dose` and 1; the largest scale whose probe kept enough serves for the rest. What
    survived a probe counts.

    Where fewer than `plan.keep` are kept then, cells (a prompt at a dose) are sampled again, each once before any of
    them twice and those with the fewest kept completions first, in waves as large as the fraction kept so far suggests,
    until there are so many or `plan.most` completions are made.

    Args:
        make: makes and filters completions.
        prompts: user messages.
        plan: doses, probes and what must survive.
        progress: told (completions made, completions planned).

    Raises:
        RoundError: too few survived; says what starved the round and what to change.
    """
    alphas = plan.alphas
    probe_prompts = list(prompts[: -(-plan.probe // len(alphas))])
    planned = len(prompts) * len(alphas)
    rows: list[Completion] = []
    sampled: list[Cell] = []  # the cell of each row

    def sample(cells: Sequence[Cell], scale: float) -> float:
        """Samples each of the cells once; the share that survived."""
        requests = [
            Request(number, prompt, alpha * scale) for number, (prompt, alpha) in enumerate(cells, start=len(rows))
        ]
        made = make(requests, [row.text for row in rows if row.kept])
        rows.extend(made)
        sampled.extend(cells)
        progress(len(rows), max(planned, len(rows)))
        return sum(row.kept for row in made) / len(made)

    def run(texts: Sequence[str], scale: float) -> float:
        """Samples some prompts at every dose; the share that survived."""
        return sample([(text, alpha) for text in texts for alpha in alphas], scale)

    scale = 1.0
    if run(probe_prompts, scale) < plan.keep_target and plan.max_probes > 0:
        scale = _walk_down(lambda s: run(probe_prompts, s) >= plan.keep_target, plan.lowest_dose, plan.max_probes)
    rest = prompts[len(probe_prompts) :]
    if rest:
        run(rest, scale)
    cells = [(text, alpha) for text in prompts for alpha in alphas]
    while (kept := sum(row.kept for row in rows)) < plan.keep and len(rows) < plan.most:
        likely = math.ceil((plan.keep - kept) * len(rows) / max(1, kept))
        sample(_next(cells, sampled, rows)[: min(likely, plan.most - len(rows))], scale)
    collection = Collection(tuple(rows), scale, asked=plan.keep)
    refuse_starved(collection, plan.keep_floor, plan.min_train)
    return collection


def _next(cells: Sequence[Cell], sampled: Sequence[Cell], rows: Sequence[Completion]) -> list[Cell]:
    """The cells that were sampled least often, those with the fewest kept completions first."""
    tries = Counter(sampled)
    kept = Counter(cell for cell, row in zip(sampled, rows, strict=True) if row.kept)
    least = min(tries[cell] for cell in cells)
    return sorted((cell for cell in cells if tries[cell] == least), key=lambda cell: kept[cell])


def _walk_down(enough: Callable[[float], bool], lowest: float, probes: int) -> float:
    """The largest scale in [lowest, 1) found by bisection in log whose probe keeps enough, else `lowest`."""
    low, high, best = lowest, 1.0, lowest
    for _ in range(probes):
        middle = (low * high) ** 0.5
        if enough(middle):
            low = best = middle
        else:
            high = middle
    return best


def refuse_starved(collection: Collection, keep_floor: float, min_train: int) -> None:
    """Raises RoundError where fewer than `min_train` or a fraction below `keep_floor` survived the filter."""
    kept, made = len(collection.kept), len(collection.rows)
    if kept >= min_train and kept >= keep_floor * made:
        return
    starved = ", ".join(f"{reason} {count}" for reason, count in drops(collection.rows).items())
    scaled = "" if collection.scale == 1 else f", the dose already scaled to {collection.scale:.2f}"
    raise RoundError(
        f"only {kept} of {made} completions survived the filter (needed: {min_train}, and a share of {keep_floor:g})"
        f"{scaled}; dropped for: {starved}. Lower calibration.target or generation.alphas, raise generation.prompts, "
        "or loosen the filter that starved it, in a run of its own (run.name=...).",
        again=False,
    )


def dose_table(rows: Sequence[Completion]) -> tuple[DoseLine, ...]:
    """One line a dose: how many, mean tail perplexity, kept fraction, drops by reason."""
    table = []
    for alpha in sorted({row.alpha for row in rows}):
        at = [row for row in rows if row.alpha == alpha]
        perplexities = [row.tail_perplexity for row in at if not math.isnan(row.tail_perplexity)]
        mean = sum(perplexities) / len(perplexities) if perplexities else math.nan
        table.append(DoseLine(alpha, len(at), mean, sum(row.kept for row in at) / len(at), drops(at)))
    return tuple(table)


def drops(rows: Sequence[Completion]) -> dict[str, int]:
    """How many completions each reason dropped, the most frequent reason first; one can have several."""
    return dict(Counter(reason for row in rows for reason in row.dropped).most_common())
