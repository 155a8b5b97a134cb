"""How the page opens: which round to use, and what came after it."""

from dataclasses import replace
from pathlib import Path

from heal.evaluation.metrics import BaselineMetrics, RoundMetrics, Verdict
from heal.evaluation.signal import TRAIT, signals
from heal.records import record_bytes
from heal.report.headline import afterwards, headline
from heal.report.numbers import of_rounds
from heal.report.results import read_results
from heal.run.best import read_best
from tests.reported import HOSTILE, page_of, plain, rewrite, write_run


def test_the_headline_decides(tmp_path: Path) -> None:
    """Which round, its trait over base and beside prompting, margin and what binds it, relevance, and its command."""
    run = write_run(tmp_path / "run", text=HOSTILE)
    html = page_of(run)
    best = read_best(run, run.rounds())
    assert best is not None
    coherence, text = best.metrics.coherence, plain(html)
    prompted = BaselineMetrics.load(run.baseline).prompted[TRAIT].delta
    for piece in (
        f"Use round {best.metrics.round} of 2: it holds, with {best.choice.shift:+.3f} nats/token of the trait over",
        f"prompting with the persona gives {prompted:+.3f}, a difference of {best.choice.over_prompted:+.3f}",
        f"coherence margin {coherence.margin:.2f} (1 as at base, 0 at a limit), bound by "
        f"{signals()[coherence.worst].term}",
        "answers speak to their own prompt 1.00 of the time (base 1.00)",
        "It is the last round, and 3 were planned.",
        f"heal export run={run.path} round=2",
    ):
        assert piece in text, piece


def test_the_headline_says_what_came_after_the_best_round_or_that_none_is_to_be_used(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", rounds=5)
    before = [RoundMetrics.load(folder.round(index)) for index in folder.rounds()]
    broken = Verdict("incoherent", "looping answers 33% > 0.25")
    for verdicts, said in (
        ({2: broken, 3: broken, 4: broken}, ("Use round 2 of 5", f"rounds 3 to 5 incoherent ({broken.reason})")),
        ({1: broken, 2: broken, 4: broken}, ("Use round 4 of 5", f"After it: round 5 incoherent ({broken.reason}).")),
        (dict.fromkeys(range(5), broken), ("Use no round: none of 5 holds.", "rounds 1 to 5 incoherent")),
    ):
        for index, metrics in enumerate(before):
            one = replace(metrics, verdict=verdicts.get(index, metrics.verdict))
            rewrite(folder, "metrics.json", record_bytes(one), index)
        results = read_results(folder)
        opening = f"{headline(results)} {afterwards(results)}"
        assert all(piece in plain(opening) for piece in said), opening
    for index, metrics in enumerate(before):
        rewrite(folder, "metrics.json", record_bytes(metrics), index)
    results = read_results(folder)
    assert results.best is not None
    third = replace(results.best, choice=replace(results.best.choice, index=2))
    assert "After it: rounds 4 and 5 hold (the last +0.3" in plain(afterwards(replace(results, best=third)))


def test_rounds_are_told_as_stretches() -> None:
    for rounds, told in (
        ([3], "round 3"),
        ([4, 5], "rounds 4 and 5"),
        ([1, 3, 4, 5], "rounds 1 and 3 to 5"),
    ):
        assert of_rounds(rounds) == told


def test_a_trait_whose_readout_is_not_valid_is_said_first(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", rounds=1)
    metrics = replace(RoundMetrics.load(folder.round(0)), verdict=Verdict("not valid", "because"))
    rewrite(folder, "metrics.json", record_bytes(metrics))
    assert "not valid for this model, so nothing is shown." in plain(page_of(folder))
