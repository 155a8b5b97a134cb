"""The best round, and when to stop."""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from heal.config import RunConfig
from heal.dose.root import Outcome
from heal.errors import UserError
from heal.evaluation.choice import Choice, best_round, why_stop
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
from heal.recipe import from_mapping, load_recipe, to_mapping
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


def best(verdicts: Sequence[str], trait: Sequence[Sequence[float]], base: Sequence[float]) -> Choice | None:
    return best_round(verdicts, trait, base, [0.5] * len(base), 200, 0)


def test_the_best_round_has_the_most_of_the_trait_among_those_that_hold():
    for verdicts, levels, index in (
        ("hhhi", (0.1, 0.3, 0.2, 0.9), 1),
        ("hh", (0.3, 0.3), 0),
        ("on", (0.9, 0.9), None),
        ("oh", (0.9, 0.1), 1),
        ("", (), None),
    ):
        labels = [{"h": "holds", "i": "incoherent", "o": "off-target", "n": "not finite"}[one] for one in verdicts]
        found = best(labels, [[level] * 4 for level in levels], [0.0] * 4)
        assert (found and found.index) == index, (verdicts, levels)
        assert found is None or found.agreed


def test_the_best_round_s_figure_is_given_by_the_prompts_that_did_not_choose_it():
    """Each round is noise around one level: the largest mean of many is far above it, the figure is not."""
    source = np.random.default_rng(0)
    figures, largest = [], []
    for _ in range(200):
        trait_RN = source.normal(0.2, 1.0, (8, 12))
        found = best(["holds"] * 8, trait_RN.tolist(), [0.0] * 12)
        assert found is not None
        figures.append(found.shift.value)
        largest.append(trait_RN.mean(1).max())
        assert found.index == trait_RN.mean(1).argmax()
        # By hand: every other prompt chooses, the others score.
        first, second = trait_RN[:, ::2].mean(1).argmax(), trait_RN[:, 1::2].mean(1).argmax()
        by_hand = (trait_RN[second, ::2].mean() + trait_RN[first, 1::2].mean()) / 2
        assert found.halves == (first, second)
        assert found.shift.value == pytest.approx(by_hand)
        assert found.over_prompted is not None
        assert found.over_prompted.value == pytest.approx(by_hand - 0.5)
    assert np.mean(largest) > 0.5
    assert np.mean(figures) == pytest.approx(0.2, abs=0.1)


def test_answers_that_could_not_be_scored_choose_nothing():
    nan = math.nan
    found = best(["holds", "holds"], [[nan, 0.1, nan, 0.1], [0.3, nan, 0.3, 0.2]], [0.0] * 4)
    assert found is not None
    assert (found.index, found.halves) == (1, (1, 1))
    assert found.shift.n == 3


def stops(plateau: int = 0, incoherent: int | bool = 0, stop: bool = True) -> RunConfig:
    return RunConfig(stop=stop, stop_on_plateau=plateau, stop_when_incoherent=incoherent)


def test_a_plateau_is_so_many_rounds_without_more_of_the_trait():
    for shifts, plateau, stopped in (
        ((0.1, 0.2, 0.3), 1, False),
        ((0.1, 0.3, 0.3), 1, True),
        ((0.1, 0.3, 0.2), 2, False),
        ((0.1, 0.3, 0.2, 0.3), 2, True),
        ((0.1, 0.3, 0.2, 0.31), 2, False),
        ((0.3,), 1, False),
        ((0.3, 0.1, 0.1, 0.1), 0, False),
    ):
        reason = why_stop(rounds(*((shift, "holds") for shift in shifts)), stops(plateau))
        assert (reason is not None) == stopped, (shifts, plateau)
        assert reason is None or f"not grown for {'a round' if plateau == 1 else f'{plateau} rounds'}" in reason


def test_so_many_rounds_in_a_row_past_a_limit_stop_a_run():
    for verdicts, incoherent, reason in (
        ("hi", 0, None),
        ("hi", False, None),
        ("hi", True, "round 2 is past a limit of coherence (tail perplexity 12.0 > 10)"),
        ("ih", 1, None),
        ("hi", 2, None),
        ("ihi", 2, None),
        ("hii", 2, "the last 2 rounds are past a limit of coherence (tail perplexity 12.0 > 10)"),
        ("", 1, None),
    ):
        done = rounds(*((0.1, {"h": "holds", "i": "incoherent"}[verdict]) for verdict in verdicts))
        assert why_stop(done, stops(0, incoherent)) == reason, (verdicts, incoherent)


def test_a_run_stops_by_itself_unless_one_key_says_no():
    broken, still = rounds(*[(0.1, "incoherent")] * 2), rounds(*[(0.1, "holds")] * 4)
    for done in (broken, still):
        assert why_stop(done, RunConfig()) is not None
        assert why_stop(done[:-1], RunConfig()) is None
        assert why_stop(done, RunConfig(stop=False)) is None


def test_how_many_incoherent_rounds_is_a_number_or_as_in_older_recipes_yes_or_no():
    for text, value in (("3", 3), ("true", True), ("false", False), ("0", 0)):
        recipe = load_recipe([f"run.stop_when_incoherent={text}"])
        assert recipe.run.stop_when_incoherent == value
        assert from_mapping(to_mapping(recipe), "recipe.yaml") == recipe
    for text in ("x", "-1", "1.5"):
        with pytest.raises(UserError, match=r"run\.stop_when_incoherent"):
            load_recipe([f"run.stop_when_incoherent={text}"])


def test_a_readout_that_is_not_valid_for_the_model_stops_nothing():
    assert why_stop(rounds((0.3, "not valid"), (0.2, "incoherent"), (0.1, "not valid")), stops(1)) is None


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
