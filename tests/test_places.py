"""Where to steer: what a place is worth, which one is taken, and the step that chooses it."""

import re
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest

from heal.dose.calibration import Calibration
from heal.dose.find import Prompts
from heal.evaluation.readouts import free_answers, likelihood, persona
from heal.evaluation.results import StageResult
from heal.evaluation.signal import TRAIT
from heal.evaluation.stats import Estimate
from heal.evaluation.subject import Setup
from heal.models.language_model import LanguageModel
from heal.places.place import BAND, CENTRES, METHOD, Place, Placed, Steered, bands_around, choose, where
from heal.places.trial import RELEVANCE, Outcome, Plan, Trial
from heal.recipe import load_recipe
from heal.report.results import read_results
from heal.run.files import write_files
from heal.steering.methods import ORDINARY
from heal.steps.measure import setup_of
from heal.steps.place import ChoosePlace
from heal.trait import Trait
from tests.cases import case
from tests.reported import Page, page_of, write_run

FIRST, OTHER, THIRD = (
    Place(METHOD, BAND, (3, 4)),
    Place(METHOD, (0.65, 0.75), (6,)),
    Place("pca", BAND, (3, 4)),
)


def surely(value: float, width: float = 0.05) -> Estimate:
    return Estimate(value, value - width, value + width, 8)


def steered(place: Place = FIRST, gain: float = 0.25, more: float = 0.0, **changes) -> Steered:
    made = Steered(
        place, place is FIRST, 1.0, 1.0, "", surely(gain), surely(gain), surely(-0.01), surely(gain), surely(more),
        *(3.0, 1.0, 0.0, ()),
    )  # fmt: skip
    return replace(made, **changes)


BROKEN = {"incoherent": ("looping answers 50% > 0.25",)}


def test_the_first_place_serves_unless_it_is_not_sound_or_a_sound_one_gains_more_beyond_noise() -> None:
    for tried, chosen, why in (
        ([steered()], FIRST, "no other place gains more"),
        ([steered(), steered(OTHER, 0.28, 0.03)], FIRST, "no other place gains more"),
        ([steered(), steered(OTHER, 0.45, 0.2)], OTHER, "gains .0.200"),
        ([steered(), steered(OTHER, 0.45, 0.2), steered(THIRD, 0.5, 0.25)], THIRD, "gains .0.250"),
        ([steered(), steered(OTHER, 0.45, 0.2), steered(THIRD, 0.5, 0.25, **BROKEN)], OTHER, "gains .0.200"),
        ([steered(gain=0.01), steered(OTHER, 0.06, 0.05)], OTHER, "the trait does not shift .*0.010"),
        ([steered(miss="far off"), steered(OTHER, 0.1, -0.15)], OTHER, "the dose is out of reach .far off"),
        ([steered(**BROKEN), steered(OTHER, 0.1, -0.15)], OTHER, "not coherent .looping answers 50%"),
        ([steered(gain=0.01), steered(OTHER, 0.45, 0.4, **BROKEN)], FIRST, "no other place is better"),
    ):
        with case(tried):
            placed = choose(tried)
            assert placed.place == chosen
            assert placed.tried == tuple(tried)
            assert re.search(why, placed.why)


def test_a_place_gains_what_the_trait_shifts_less_what_answers_lose_of_their_relevance_for_each_nat(
    tiny: LanguageModel, tiny_trait: Trait
) -> None:
    recipe = load_recipe(["recipe=smoke"])

    def stage(name: str, trait: list[float], relevance: list[float]) -> StageResult:
        values = {TRAIT: trait, RELEVANCE: relevance}
        signals = [*persona.SIGNALS, *free_answers.SIGNALS, *likelihood.SIGNALS]
        return StageResult(name, (), tuple(one.measured(values.get(one.name, [1.0] * 9)) for one in signals))

    def outcome(place: Place, nats: float, trait: list[float], relevance: list[float]) -> Outcome:
        found = Calibration(1.0, nats, 1.0, 0.2, "tolerance", 1, (), None, "student")
        return Outcome(place, found, stage("steered", trait, relevance))

    setup = setup_of(recipe, tiny, nullcontext, tiny_trait)
    plan = Plan((METHOD,), (BAND,), 4, 2, 4, 4)
    trial = Trial(recipe, setup, plan, Prompts(()), stage("base", [0.0] * 9, [0.5] * 9))
    first = outcome(FIRST, 1.0, [0.2] * 9, [0.6] * 9)  # what relevance rises by is no gain
    lossy = outcome(OTHER, 0.8, [0.5 + step / 20 for step in range(9)], [0.3, 0.4, 0.5] * 3)
    assert trial.judged(first, first).gain.value == pytest.approx(0.2)
    judged = trial.judged(lossy, first)
    assert judged.gain.value == pytest.approx((0.7 - 0.1) / 0.8)
    assert judged.per_nat.value == pytest.approx(0.7 / 0.8)
    assert judged.relevance.value == pytest.approx(-0.1)
    assert judged.more.value == pytest.approx(0.6 / 0.8 - 0.2)
    strict = trial.judged(lossy, first, tries=20).more
    assert strict.low < judged.more.low
    assert strict.high > judged.more.high


def chooser(model: LanguageModel, trait: Trait, unreadable: str, *words: str) -> ChoosePlace:
    recipe = load_recipe(["recipe=smoke", "steer.pairs=4", "generation.tokens=4", "evaluation.resamples=100", *words])
    setup: Setup = setup_of(recipe, model, nullcontext, trait)
    return ChoosePlace(setup, recipe, unreadable)


def test_what_is_chosen_is_one_of_the_places_that_were_tried_and_is_read_back(
    tiny: LanguageModel, tiny_trait: Trait, tmp_path: Path
) -> None:
    blocks = {tuple(tiny.band(band)) for band in bands_around(CENTRES, BAND)}
    for words, count in (
        (("steer.band=auto",), len(blocks)),
        (("steer.method=auto", "steer.band=[0.5,0.8]"), len(ORDINARY)),
    ):
        with case(words):
            step = chooser(tiny, tiny_trait, "", *words)
            placed = step.compute(lambda done, most: None)
            assert placed.place in [one.place for one in placed.tried]
            assert len(placed.tried) == len({one.place for one in placed.tried}) == count
            write_files(tmp_path, placed.files())
            assert Placed.load(tmp_path) == placed
            assert where(step.recipe.steer, tmp_path) == (placed.place.method, placed.place.band)


def test_a_trait_that_cannot_be_read_leaves_the_first_place(tiny: LanguageModel, tiny_trait: Trait) -> None:
    placed = chooser(tiny, tiny_trait, "+0.001", "steer.band=auto", "steer.method=auto").compute(lambda *_: None)
    assert (placed.place.method, placed.place.band, placed.tried) == (METHOD, BAND, ())
    assert "cannot be read" in placed.why


def test_the_report_shows_every_place_that_was_tried_and_which_was_chosen(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    assert read_results(folder).placed is None
    assert "Where to steer" not in page_of(folder)
    placed = choose([steered(), steered(OTHER, 0.45, 0.2)])
    folder.finish(folder.place, "place", replace(placed, why="<b>better</b>").files(), 1.0)
    page = page_of(folder)
    text = Page(page).text
    assert "Where to steer" in text
    assert "<b>better</b>" not in page
    assert "blocks at 0.65 to 0.75 of the depth, chosen: <b>better</b>" in text
    assert text.count("+0.450 [+0.400, +0.500]") == 2
