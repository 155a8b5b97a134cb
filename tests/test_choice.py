"""The best round, and when to stop."""

from dataclasses import replace

from heal.dose.root import Outcome
from heal.evaluation.choice import best_round, why_stop
from heal.evaluation.metrics import (
    Coherence,
    CoherenceCost,
    DoseFigures,
    GenerationFigures,
    RoundMetrics,
    TrainingFigures,
    Verdict,
)
from heal.evaluation.signal import MASS, TRAIT
from heal.evaluation.stats import Estimate
from tests.stages import around, summary

OUTCOME: Outcome = "tolerance"


def metrics(shift: Estimate, label: str, mass: float = 0.0) -> RoundMetrics:
    return RoundMetrics(
        1,
        DoseFigures(1.0, 1.0, OUTCOME, None, 1.0),
        GenerationFigures(8, 8, 1.0, 0.5),
        TrainingFigures(1.0, 1.0, 0.1, 0.2, 0.0),
        1.0,
        None,
        summary({TRAIT: around(0.2), MASS: around(0.9)}, {TRAIT: shift, MASS: around(mass)}),
        Coherence(MASS, 0.5),
        (TRAIT, MASS),
        None,
        Verdict(label, "tail perplexity 12.0 > 10"),
    )


def rounds(*entries: tuple[float, str]) -> list[RoundMetrics]:
    """Rounds with a trait shift and a verdict."""
    return [metrics(around(shift, 0.05), label) for shift, label in entries]


def test_the_best_round_has_the_most_of_the_trait_among_the_coherent():
    assert best_round(rounds((0.1, "holds"), (0.3, "holds"), (0.2, "holds"), (0.9, "incoherent"))) == 1
    assert best_round(rounds((0.3, "holds"), (0.3, "holds"))) == 0
    assert best_round(rounds((0.2, "off-target"), (0.9, "not finite"))) == 0


def test_no_round_is_best_where_none_shifts_the_trait_coherently():
    assert best_round(rounds((0.04, "no trait shift"), (0.5, "incoherent"))) is None
    assert best_round([]) is None


def test_a_plateau_is_so_many_rounds_without_more_of_the_trait():
    for shifts, plateau, stops in (
        ((0.1, 0.2, 0.3), 1, False),
        ((0.1, 0.3, 0.3), 1, True),
        ((0.1, 0.3, 0.2), 2, False),
        ((0.1, 0.3, 0.2, 0.3), 2, True),
        ((0.1, 0.3, 0.2, 0.31), 2, False),
        ((0.3,), 1, False),
        ((0.3, 0.1, 0.1, 0.1), 0, False),
    ):
        reason = why_stop(rounds(*((shift, "holds") for shift in shifts)), plateau, False)
        assert (reason is not None) == stops, (shifts, plateau)
        assert reason is None or f"not grown for {plateau} rounds" in reason


def test_an_incoherent_round_stops_a_run_that_asks_for_it():
    broken = rounds((0.1, "holds"), (0.2, "incoherent"))
    assert why_stop(broken, 0, False) is None
    assert why_stop(broken, 0, True) == "round 2 is past a floor of coherence (tail perplexity 12.0 > 10)"
    assert why_stop(broken[:1], 0, True) is None
    assert why_stop([], 1, True) is None


def test_a_readout_that_is_not_valid_for_the_model_chooses_and_stops_nothing():
    read = rounds((0.3, "not valid"), (0.2, "incoherent"), (0.1, "not valid"))
    assert best_round(read) is None
    assert why_stop(read, 1, False) is None


def test_the_cost_of_coherence_is_the_ratio_with_both_signs_beside_it():
    for shift in (0.12, -0.12):
        cost = metrics(around(shift), "holds", mass=-0.06).coh_cost
        assert cost == CoherenceCost(-0.06, shift)
        assert cost.ratio == 0.5


def test_without_a_trait_shift_or_an_answer_mass_there_is_no_cost():
    for shift in (around(0.01), around(0.0), around(-0.01), Estimate(*[float("nan")] * 3, 0)):
        assert metrics(shift, "holds").coh_cost is None
    unmeasured = metrics(around(0.5), "holds")
    healed = {name: figures for name, figures in unmeasured.healed.items() if name != MASS}
    assert replace(unmeasured, healed=healed).coh_cost is None
