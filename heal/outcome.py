"""What comes out of a run: tables and curves round by round, then the report, the adapter and one line."""

from typing import Any

from heal.console import counted
from heal.evaluation.choice import best_round
from heal.evaluation.metrics import RoundMetrics, Verdict
from heal.records import as_record, read_jsonl
from heal.session import Session


def show_round(session: Session, metrics: dict[str, Any]) -> None:
    """The round's small table on the console."""
    dose, generation, training = metrics["dose"], metrics["generation"], metrics["training"]
    healed, r = metrics["healed"], metrics["round"]
    seconds = session.folder.seconds(session.folder.round(r))
    session.console.table(
        f"round {r + 1}",
        {
            "dose": f"c* {dose['c_star']:.3f} at p95 {dose['p95']:.2f} nats",
            "kept": f"{generation['kept']} of {generation['made']}",
            "loss": f"{training['loss']:.3f}",
            "D": f"{training['D_mean']:.2f} nats",
            "barrier on": f"{training['barrier_on']:.0%}",
            "trait": interval(healed["persona_log_ratio"]) + " nats/token",
            "over base": interval(healed["persona_log_ratio"]["delta"], sign=True),
            "coherence": interval(healed["p_ans_any"]),
            "tail perplexity": interval(healed["tail_perplexity"]),
            "coherence margin": f"{metrics['coherence']['margin']:.2f} ({metrics['coherence']['worst']})",
            "cosine to round 1": f"{metrics['cosine_to_first']:.2f}",
            "verdict": metrics["verdict"]["label"],
            "seconds": ", ".join(f"{name} {value:.0f}" for name, value in seconds.items()),
        },
    )


def interval(estimate: dict[str, float], sign: bool = False) -> str:
    """`0.21 [0.14, 0.29]`."""
    form = "{:+.3f} [{:+.3f}, {:+.3f}]" if sign else "{:.3f} [{:.3f}, {:.3f}]"
    return form.format(estimate["value"], estimate["low"], estimate["high"])


def round_values(metrics: dict[str, Any]) -> dict[str, float]:
    """What a round is followed by: trait, coherence, dose, survival, KL."""
    values: dict[str, float] = {
        "c_star": metrics["dose"]["c_star"],
        "path_kl_p95": metrics["dose"]["p95"],
        "kept_share": metrics["generation"]["kept_share"],
        "ended_share": metrics["generation"]["ended_share"],
        "cosine_to_first": metrics["cosine_to_first"],
    }
    values |= {f"heal_{name}": value for name, value in metrics["training"].items()}
    for stage in ("steered", "healed"):
        for name, estimate in (metrics[stage] or {}).items():
            values |= {f"{stage}/{name}": estimate["value"], f"{stage}/{name}_low": estimate["low"]}
            values |= {f"{stage}/{name}_high": estimate["high"], f"{stage}/{name}_delta": estimate["delta"]["value"]}
    values["trait"] = metrics["healed"]["persona_log_ratio"]["value"]
    values["coherence"] = metrics["healed"]["p_ans_any"]["value"]
    values["coherence_margin"] = metrics["coherence"]["margin"]
    values |= {f"valid/{name}": float(name in metrics["valid"]) for name in metrics["healed"]}
    if metrics["coh_cost"] is not None:
        values["coh_cost"] = metrics["coh_cost"]["ratio"]
    return values


def track_round(session: Session, metrics: dict[str, Any], new: bool) -> None:
    """Curves and tables of a round; one that an earlier process finished is only shown to W&B again."""
    r = metrics["round"]
    folder = session.folder.round(r)
    if not new:
        for entry in read_jsonl(folder / "training.jsonl"):
            session.tracker.training(r, session.recipe.heal.epochs, entry, new=False)
    session.tracker.round(r, round_values(metrics), new)
    names = ("prompt", "alpha", "text", "ended", "tail_perplexity", "repetition")
    session.tracker.table(
        f"completions/round_{r:02d}",
        [
            {"kept": not row["dropped"], "dropped": ", ".join(row["dropped"])} | {name: row[name] for name in names}
            for row in read_jsonl(folder / "completions.jsonl")
        ],
    )
    session.tracker.table(f"outputs/round_{r:02d}", read_jsonl(folder / "outputs.jsonl"))


def deliver(session: Session, metrics: list[dict[str, Any]], new: int, seconds: float) -> None:
    """Report, adapter, W&B's figures and artifact, and the last lines.

    Verdict, best round and adapter are of the rounds that `metrics` has, the report of all that the folder holds: they
    are more where an earlier start went further.

    Args:
        session: the run.
        metrics: of each round that this start went through.
        new: how many of them were not finished before.
        seconds: since the start.
    """
    from heal.export.adapter import export_adapter
    from heal.report.build import build_report

    console, folder = session.console, session.folder
    rounds = [entry["round"] for entry in metrics]
    there = len(folder.rounds())
    more = there > len(rounds)
    console.title("results")
    with console.stage("report") as shown:
        page = build_report(folder)
        shown.found(str(page))
    with console.stage("export") as shown:
        exported = export_adapter(session.student(rounds), folder.adapter)
        shown.found(f"{exported.path}: loads in peft, logits within {exported.error:.1e} of the student's")
    last = metrics[-1]
    final = Verdict(**last["verdict"])
    for figure in sorted(folder.report.glob("*.png")):
        session.tracker.figure(f"report/{figure.stem}", figure)
    session.tracker.artifact(f"{session.recipe.run.name}-adapter", "adapter", exported.path)
    session.tracker.finish({"state": "done", "verdict": final.label, "reason": final.reason, "seconds": round(seconds)})
    console.say("")
    if more:
        console.say(
            f"rounds     the folder holds {there}, all in the report; "
            f"verdict, best round and adapter are of the first {len(rounds)}"
        )
    console.say(f"verdict    {final.label}: {final.reason}")
    best = best_round([as_record(RoundMetrics, entry, "metrics.json") for entry in metrics])
    if best is not None and best != len(metrics) - 1:
        shift = interval(metrics[best]["healed"]["persona_log_ratio"]["delta"], sign=True)
        export = f"python scripts/export.py run={folder.path} round={rounds[best] if more else 'best'}"
        console.say(f"best       round {best + 1}: {shift} over base and coherent; {export}")
    console.say(f"report     {page}")
    console.say(f"adapter    {exported.path}")
    console.say(f"try it     python scripts/chat.py run={folder.path}" + (f" round={rounds[-1]}" if more else ""))
    console.say(f"took       {seconds:.0f} s for {counted(new, 'round')} in this start")
