"""Samples completions under steering, filters them, and walks the dose down when too few survive."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from heal.errors import RoundError
from heal.progress import Progress, silent


@dataclass(frozen=True)
class Row:
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

    @property
    def kept(self) -> bool:
        return not self.dropped

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_json(content: dict[str, Any]) -> "Row":
        lists = {name: tuple(content[name]) for name in ("prompt_ids", "ids", "dropped")}
        return Row(**(content | lists))


@dataclass(frozen=True)
class Cell:
    """One completion to be made: a prompt at a dose."""

    index: int
    prompt: str
    alpha: float


# Makes and filters the completions of some cells, given the texts kept so far.
Maker = Callable[[Sequence[Cell], Sequence[str]], list[Row]]


@dataclass(frozen=True)
class Collection:
    """All completions of a round, and the scale that the dose was walked down to (1: as asked)."""

    rows: tuple[Row, ...]
    scale: float

    @property
    def kept(self) -> list[Row]:
        return [row for row in self.rows if row.kept]


def collect(
    make: Maker,
    prompts: Sequence[str],
    alphas: Sequence[float],
    probe: int,
    max_probes: int,
    lowest: float,
    keep_target: float,
    keep_floor: float,
    min_train: int,
    progress: Progress = silent,
) -> Collection:
    """Every prompt at every dose; the doses are scaled down first if a probe keeps too few.

    A probe takes the first prompts at all doses. If fewer than `keep_target` of it survive, the
    scale is bisected in log between `lowest` and 1; the largest scale whose probe kept enough
    serves for the rest. What survived a probe counts.

    Args:
        make: makes and filters completions.
        prompts: user messages.
        alphas: doses asked for.
        probe: completions of a probe, rounded up to whole prompts.
        max_probes: probes after the first.
        lowest: smallest scale tried.
        keep_target: share that must survive a probe.
        keep_floor: share of all completions under which the round stops.
        min_train: number of kept ones under which the round stops.
        progress: told (completions made, completions planned).

    Raises:
        RoundError: too few survived; says what starved the round and what to change.
    """
    probe_prompts = list(prompts[: -(-probe // len(alphas))])
    planned = len(prompts) * len(alphas)
    rows: list[Row] = []

    def run(texts: Sequence[str], scale: float) -> float:
        """Makes the cells of some prompts; the share that survived."""
        cells = [
            Cell(len(rows) + number, text, alpha * scale)
            for number, (text, alpha) in enumerate((text, alpha) for text in texts for alpha in alphas)
        ]
        made = make(cells, [row.text for row in rows if row.kept])
        rows.extend(made)
        progress(len(rows), max(planned, len(rows)))
        return sum(row.kept for row in made) / len(made)

    scale = 1.0
    if run(probe_prompts, scale) < keep_target and max_probes > 0:
        scale = _walk_down(lambda s: run(probe_prompts, s) >= keep_target, lowest, max_probes)
    rest = prompts[len(probe_prompts) :]
    if rest:
        run(rest, scale)
    collection = Collection(tuple(rows), scale)
    _check(collection, keep_floor, min_train)
    return collection


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


def _check(collection: Collection, keep_floor: float, min_train: int) -> None:
    kept, made = len(collection.kept), len(collection.rows)
    if kept >= min_train and kept >= keep_floor * made:
        return
    drops = Counter(reason for row in collection.rows for reason in row.dropped)
    starved = ", ".join(f"{reason} {count}" for reason, count in drops.most_common())
    scaled = "" if collection.scale == 1 else f", the dose already scaled to {collection.scale:.2f}"
    raise RoundError(
        f"only {kept} of {made} completions survived the filter (needed: {min_train}, and a share of {keep_floor:g})"
        f"{scaled}; dropped for: {starved}. Lower calibration.target or generation.alphas, raise generation.prompts, "
        "or loosen the filter that starved it, in a run of its own (run.name=...).",
        again=False,
    )


def dose_table(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """One entry a dose: alpha, count, mean tail perplexity, kept share, drops by reason."""
    table = []
    for alpha in sorted({row.alpha for row in rows}):
        at = [row for row in rows if row.alpha == alpha]
        perplexities = [row.tail_perplexity for row in at if row.tail_perplexity == row.tail_perplexity]
        table.append(
            {
                "alpha": alpha,
                "count": len(at),
                "tail_perplexity": sum(perplexities) / len(perplexities) if perplexities else float("nan"),
                "kept_share": sum(row.kept for row in at) / len(at),
                "dropped": dict(Counter(reason for row in at for reason in row.dropped).most_common()),
            }
        )
    return table
