"""What comes out of a run: tables and curves round by round, then the report, the adapter and the last lines."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict

from heal.console import counted
from heal.evaluation.metrics import BaselineMetrics, RoundMetrics, Summary, of_each_trait
from heal.evaluation.results import OUTPUTS, Rows
from heal.evaluation.signal import TRAIT, described
from heal.evaluation.stats import Estimate
from heal.evaluation.validity import valid_names
from heal.healing.log import read_log
from heal.memory import memory_told
from heal.parallel import by_first, first_alone
from heal.records import read_jsonl
from heal.run.best import Best, meant_round, read_best
from heal.run.session import Session
from heal.steps.baseline import Baseline
from heal.steps.heal import LOG

TABLE = ("prompt", "alpha", "text", "ended", "tail_perplexity", "repetition", "on_prompt")  # of a completion


def show_round(session: Session, metrics: RoundMetrics) -> None:
    """The round's small table on the console."""
    dose, generation, training = metrics.dose, metrics.generation, metrics.training
    seconds = session.folder.seconds(session.folder.round(metrics.round - 1))
    each = of_each_trait(metrics.healed)
    session.console.table(
        f"round {metrics.round}",
        {
            "dose": f"c* {dose.c_star:.3f} at p95 {dose.p95:.2f} nats",
            "kept": f"{generation.kept} of {generation.made}",
            "loss": f"{training.loss:.3f}",
            **({} if training.D_mean is None else {"D": f"{training.D_mean:.2f} nats"}),
            **({} if training.barrier_on is None else {"barrier on": f"{training.barrier_on:.0%}"}),
            **({} if training.strength is None else {"lambda": f"{training.strength:.2f}"}),
            **({} if metrics.drift is None else {"drift": metrics.drift.said}),
            "trait": interval(metrics.trait) + " nats/token",
            "over base": interval(metrics.trait.delta, sign=True),
            **{f"over base, {name}": interval(own.delta, sign=True) for name, own in each.items()},
            "coherence": f"{metrics.coherence.margin:.2f} ({metrics.coherence.worst})",
            **{s.term: interval(metrics.healed[s.name]) for s in described(metrics.healed) if s.headline},
            "cosine to round 1": f"{metrics.cosine_to_first:.2f}",
            "verdict": metrics.verdict.label,
            "seconds": ", ".join(f"{name} {value:.0f}" for name, value in seconds.items()),
        },
    )


def interval(estimate: Estimate, sign: bool = False) -> str:
    """`0.21 [0.14, 0.29]`."""
    return format(estimate, "+.3f" if sign else ".3f")


def round_values(metrics: RoundMetrics) -> dict[str, float]:
    """What a round is followed by: every number of metrics.json under its own name there, parts parted by `/`.

    Beside them `trait` (the healed student's persona log-ratio), `coherence` (the margin of the worst valid signal) and
    `coh_cost`; of a signal its value, `_low`, `_high` and its `_delta` to base; `valid/<signal>` is 1 or 0.
    """
    values: dict[str, float] = {
        "trait": metrics.trait.value,
        "coherence": metrics.coherence.margin,
        "cosine_to_first": metrics.cosine_to_first,
    }
    for part in ("dose", "generation", "training"):
        values |= {f"{part}/{name}": value for name, value in _numbers(asdict(getattr(metrics, part)))}
    for texts, divergences in ({} if metrics.drift is None else metrics.drift.by_text).items():
        for divergence, spread in divergences.items():
            values |= {f"drift/{texts}/{divergence}_{name}": value for name, value in _numbers(asdict(spread))}
    for stage in ("steered", "healed"):
        values |= {f"{stage}/{name}": value for name, value in _signals(getattr(metrics, stage) or {})}
    values |= {f"valid/{name}": float(name in metrics.valid) for name in metrics.healed}
    if metrics.coh_cost is not None:
        values["coh_cost"] = metrics.coh_cost.ratio
    return values


def base_values(baseline: Baseline) -> dict[str, float]:
    """The same of base, which is the student before round 1: where the curves of trait and signals begin."""
    base = baseline.metrics.base
    return {
        "trait": base[TRAIT].value,
        "coherence": baseline.coherence(base).margin,
        **{f"healed/{name}": value for name, value in _signals(base)},
        **{f"valid/{name}": float(name in baseline.valid) for name in base},
    }


def _numbers(part: dict[str, object]) -> Iterator[tuple[str, float]]:
    for name, value in part.items():
        if isinstance(value, int | float):
            yield name, value


def _signals(summary: Summary) -> Iterator[tuple[str, float]]:
    for name, signal in summary.items():
        yield from (
            (name, signal.value),
            (f"{name}_low", signal.low),
            (f"{name}_high", signal.high),
            (f"{name}_delta", signal.delta.value),
        )


@first_alone
def track_base(session: Session, baseline: Baseline, new: bool) -> None:
    """Base as round 0."""
    session.tracker.round(0, base_values(baseline), new)


@first_alone
def track_round(session: Session, metrics: RoundMetrics, new: bool) -> None:
    """Curves and tables of a round; one that an earlier process finished is not new."""
    folder = session.folder.round(metrics.round - 1)
    if not new:
        for log in read_log(folder / LOG):
            session.tracker.step_log(metrics.round, session.recipe.heal.epochs, log, new=False)
    session.tracker.round(metrics.round, round_values(metrics), new)
    session.tracker.table(
        "completions",
        [
            {"kept": not row["dropped"], "dropped": ", ".join(row["dropped"])} | {name: row.get(name) for name in TABLE}
            for row in read_jsonl(folder / "completions.jsonl")
        ],
        metrics.round,
    )
    session.tracker.table("outputs", read_jsonl(folder / OUTPUTS), metrics.round)


def interval_rows(baseline: BaselineMetrics, rounds: Sequence[RoundMetrics]) -> Rows:
    """Every signal of every stage with its interval and that of its paired difference to base; base is round 0."""
    valid = valid_names(baseline.validity)
    stages = [(0, "base", baseline.base)]
    for metrics in rounds:
        stages += [(metrics.round, "steered", metrics.steered or {}), (metrics.round, "healed", metrics.healed)]
    return [
        {"round": number, "stage": stage, "signal": signal.name, "unit": signal.unit, "valid": signal.name in valid}
        | {"value": found.value, "low": found.low, "high": found.high, "n": found.n}
        | {"delta": found.delta.value, "delta_low": found.delta.low, "delta_high": found.delta.high}
        for number, stage, summary in stages
        for signal in described(summary)
        for found in [summary[signal.name]]
    ]


def deliver(session: Session, rounds: Sequence[RoundMetrics], new: int, seconds: float) -> None:
    """Report, adapter, W&B's figures and artifact, and the last lines.

    Verdict, best round and adapter are of `rounds`, the report of all that the folder holds: they are more where an
    earlier start went further. The session's student is that of the adapter afterwards.

    Args:
        session: the run.
        rounds: those that this start went through.
        new: how many of them were not finished before.
        seconds: since the start.
    """
    from heal.export.adapter import export_adapter
    from heal.report.build import build_report

    console, folder = session.console, session.folder
    console.title("results")
    with console.step("report") as line:
        page = by_first(lambda: build_report(folder))
        line.result(str(page))
    done = list(range(len(rounds)))
    best = by_first(lambda: read_best(folder, done))
    taken = done if best is None or session.recipe.export.round == "last" else done[: best.choice.index + 1]
    with console.step("export") as line:
        if len(taken) < len(done):
            session.accumulator.go_back(len(taken))
        with memory_told("while exporting", f"run: heal export run={folder.path} device=cpu"):
            exported = by_first(lambda: export_adapter(session.student(taken, done), folder.adapter))
        line.result(f"{exported.path}: loads in peft and is the student ({exported.agreement})")
    verdict = rounds[-1].verdict
    session.tracker.table("intervals", interval_rows(by_first(lambda: BaselineMetrics.load(folder.baseline)), rounds))
    for figure in sorted(folder.report.glob("*.png")):
        session.tracker.figure(f"report/{figure.stem}", figure)
    session.tracker.artifact(f"{session.recipe.run.name}-adapter", "adapter", exported.path)
    console.say("")
    for text in _last_lines(rounds, best, there=len(folder.rounds())):
        console.say(text)
    console.say(f"report     {page}")
    console.say(f"adapter    {exported.path} (round {len(taken)} of {len(done)})")
    by_default, _ = by_first(lambda: meant_round(folder, None))
    number = "" if by_default == taken[-1] else f" round={len(taken)}"
    console.say(f"try it     heal chat run={folder.path}{number}")
    console.say(f"took       {seconds:.0f} s for {counted(new, 'round')} in this start")
    # Last, since a tracker may wait for an upload.
    session.tracker.finish(
        {"state": "done", "verdict": verdict.label, "reason": verdict.reason, "seconds": round(seconds)}
    )


def _last_lines(rounds: Sequence[RoundMetrics], best: Best | None, there: int) -> Iterator[str]:
    """How far the folder goes beyond this start, the last verdict, and which round to use."""
    if there > len(rounds):
        yield (
            f"rounds     the folder holds {there}, all in the report; "
            f"verdict, best round and adapter are of the first {len(rounds)}"
        )
    verdict = rounds[-1].verdict
    yield f"verdict    {verdict.label}: {verdict.reason}"
    yield f"use        {'no round: none holds' if best is None else f'round {best.metrics.round}: {best.said}'}"
