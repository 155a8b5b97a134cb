"""The best round, and when to stop."""

from typing import Any

import pytest

from heal.evaluation.choice import best_round, why_stop


def rounds(*entries: tuple[float, str]) -> list[dict[str, Any]]:
    """Metrics of rounds with a trait shift (its interval half a nat wide) and a verdict."""
    return [
        {
            "healed": {"persona_log_ratio": {"delta": {"value": shift, "low": shift - 0.05, "high": shift + 0.05}}},
            "verdict": {"label": label, "reason": "tail perplexity 12.0 > 10"},
        }
        for shift, label in entries
    ]


def test_the_best_round_has_the_most_of_the_trait_among_the_coherent():
    assert best_round(rounds((0.1, "holds"), (0.3, "holds"), (0.2, "holds"), (0.9, "incoherent"))) == 1
    assert best_round(rounds((0.3, "holds"), (0.3, "holds"))) == 0
    assert best_round(rounds((0.2, "off-target"), (0.9, "not finite"))) == 0


def test_no_round_is_best_where_none_shifts_the_trait_coherently():
    assert best_round(rounds((0.04, "no trait shift"), (0.5, "incoherent"))) is None
    assert best_round([]) is None


@pytest.mark.parametrize(
    ("shifts", "plateau", "stops"),
    [
        ((0.1, 0.2, 0.3), 1, False),
        ((0.1, 0.3, 0.3), 1, True),
        ((0.1, 0.3, 0.2), 2, False),
        ((0.1, 0.3, 0.2, 0.3), 2, True),
        ((0.1, 0.3, 0.2, 0.31), 2, False),
        ((0.3,), 1, False),
        ((0.3, 0.1, 0.1, 0.1), 0, False),
    ],
)
def test_a_plateau_is_so_many_rounds_without_more_of_the_trait(shifts: tuple[float, ...], plateau: int, stops: bool):
    reason = why_stop(rounds(*((shift, "holds") for shift in shifts)), plateau, False)
    assert (reason is not None) == stops
    if reason:
        assert f"not grown for {plateau} rounds" in reason


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
