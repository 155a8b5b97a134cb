"""The way of asking that is chosen for a model: by what base knows of items held apart, once, and kept by the run."""

import math
import shutil
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from heal.accumulator import Accumulator
from heal.console import Console
from heal.evaluation.asking.choose import FIRST, LEVEL, choose, judge
from heal.evaluation.asking.way import Asking, ForcedChoice, Item, Scored, Way
from heal.evaluation.evaluate import forced_choices, measure_all
from heal.evaluation.probe import FORMATS, NoSlot, Probe
from heal.evaluation.readouts import moral_foundations, questions, wrongness
from heal.evaluation.results import StageResult
from heal.evaluation.signal import MIN_MASS
from heal.evaluation.stats import estimate, informedness
from heal.evaluation.subject import Subject
from heal.evaluation.vignettes import read_vignettes
from heal.models.chat import Chat
from heal.models.language_model import LanguageModel
from heal.recipe import load_recipe
from heal.records import read_record, record_bytes
from heal.run.facts import Facts
from heal.run.folder import RunFolder
from heal.run.session import Session
from heal.steps.baseline import Ways, examine, way_rows
from heal.tracking.tracker import Tracker
from tests.stages import setup
from tests.students import student
from tests.tiny import tokenizer, trait

RESAMPLES = 400
COUNT = 72
ITEMS = tuple(Item(f"item {index}", ("one", "two", "three"), index % 3) for index in range(COUNT))


@dataclass(frozen=True)
class Told(Way):
    """Says what it is told: right, but for so many of ITEMS from the end, where it is the option after the right one.

    Attributes:
        label: its name.
        mistakes: how many.
        mass: on the options; None: it has no slot.
        leans: added to the score of each option.
        aloud: whether it thinks.
        deaf: whether it could score no item.
        slot: whether the tokenizer has the slot that it needs.
    """

    label: str
    mistakes: int = 0
    mass: float | None = 1.0
    leans: tuple[float, float, float] = (0.0, 0.0, 0.0)
    aloud: bool = False
    deaf: bool = False
    slot: bool = True

    @property
    def name(self) -> str:
        return self.label

    @property
    def thinks(self) -> bool:
        return self.aloud

    def ask(self, subject: Subject, items: Sequence[Item]) -> Scored:
        if not self.slot:
            raise NoSlot("no slot")
        mistaken = ITEMS[COUNT - self.mistakes :]
        said = [(item.right + (item in mistaken)) % 3 for item in items]
        return answered(said, self.mass, math.nan if self.deaf else 1.0, self.leans)


def answered(
    said: Sequence[int], mass: float | None = None, sure: float = 1.0, leans: Sequence[float] = (0.0, 0.0, 0.0)
) -> Scored:
    """What a way gives that chooses these options."""
    score_NK = torch.nn.functional.one_hot(torch.tensor(said), 3).double() * sure + torch.tensor(leans)
    return Scored(score_NK, None if mass is None else torch.full((len(said),), mass, dtype=torch.float64))


def of(*ways: Way, centred: bool = False) -> ForcedChoice:
    return ForcedChoice("choice", {way.name: way for way in ways}, ITEMS, ways[0].name, centred=centred)


def base_of(model: LanguageModel, **changes) -> Subject:
    return Subject(setup(model, **changes), "base", nullcontext)


def chosen(model: LanguageModel, *ways: Way, centred: bool = False, **changes) -> Asking:
    found = choose(of(*ways, centred=centred), base_of(model, **changes), RESAMPLES, 0)
    assert found is not None
    return found


# Whether a way is valid.


def test_a_way_with_a_slot_needs_base_s_mass_on_its_options_and_one_without_needs_none():
    said = [item.right for item in ITEMS]
    for mass, valid in ((MIN_MASS + 0.001, True), (MIN_MASS - 0.001, False), (None, True)):
        found = judge(answered(said, mass), ITEMS, 1, RESAMPLES, 0)
        assert found.valid == valid, mass
        assert found.mass == (None if mass is None else pytest.approx(mass))
        assert ("no slot" in found.why) == (mass is None), found.why
        assert (found.informedness.value, found.accuracy) == (pytest.approx(1.0), 1.0)


def test_a_way_that_tells_on_half_of_the_items_alone_is_not_valid_however_well_it_does_on_all():
    for half in (0, 1):
        said = [(item.right + (index % 2 == half)) % 3 for index, item in enumerate(ITEMS)]
        found = judge(answered(said), ITEMS, 1, RESAMPLES, 0)
        assert found.informedness.low > 0
        assert (found.halves[half], found.halves[1 - half]) == (pytest.approx(-0.5), pytest.approx(1.0))
        assert not found.valid, half


def test_the_more_ways_are_tried_the_wider_the_interval_that_must_lie_above_chance():
    """Of all together, at most 1 in 20 that know nothing may pass: Bonferroni."""
    right, verdicts = [item.right for item in ITEMS], []
    for known in range(COUNT):
        said = [option if index < known else index // 3 % 3 for index, option in enumerate(right)]
        tried = {ways: judge(answered(said), ITEMS, ways, RESAMPLES, 0) for ways in (1, 4, 50)}
        for ways, found in tried.items():
            expected = estimate(informedness(said, right), "mean", RESAMPLES, 0, 1 - (1 - LEVEL) / ways)
            assert found.informedness == expected, ways
            assert found.valid == (expected.low > 0 and min(found.halves) > 0), (known, ways)
        assert tried[50].informedness.low <= tried[4].informedness.low <= tried[1].informedness.low
        verdicts.append(tuple(found.valid for found in tried.values()))
    assert {(False, False, False), (True, False, False), (True, True, False), (True, True, True)} <= set(verdicts)


def test_an_item_that_could_not_be_scored_counts_as_answered_wrong():
    scored = answered([item.right for item in ITEMS])
    scored.score_NK[:18] = torch.nan
    found = judge(scored, ITEMS, 1, RESAMPLES, 0)
    assert (found.accuracy, found.informedness.value) == (0.75, pytest.approx(0.75))
    scored.score_NK[2:] = torch.nan
    scored.score_NK[:2] = answered([0, 1]).score_NK
    few = judge(scored, ITEMS, 1, RESAMPLES, 0)
    assert (few.informedness.low, min(few.halves) > 0, few.valid) == (0.0, True, False), "an interval that holds 0"


# Which way is taken.


def test_the_most_informative_valid_way_is_taken_the_first_of_equals_and_without_a_valid_one_the_most_informative(
    tiny: LanguageModel,
):
    little = MIN_MASS - 0.1
    for ways, label, valid in (
        ((Told("a", 40), Told("b", 6), Told("c", 20)), "b", True),
        ((Told("a", 6), Told("b", 6)), "a", True),
        ((Told("a", 20), Told("b", mass=little), Told("c", 6, mass=None)), "c", True),
        ((Told("a", 40), Told("b", mass=little)), "b", False),
        ((Told("a", COUNT), Told("b", 6, mass=little), Told("c", 60)), "b", False),
    ):
        found = chosen(tiny, *ways)
        assert (found.way, found.label, found.offset) == (label, label, ()), ways
        assert found.judged is found.tried[label]
        assert found.judged.valid == valid, ways
        assert list(found.tried) == [way.name for way in ways]
        for way in ways:
            asked = ITEMS[: found.tried[way.name].informedness.n]
            judged = judge(way.ask(base_of(tiny), asked), asked, len(ways), RESAMPLES, 0)
            assert found.tried[way.name] == judged, "all of them count as tried"


def test_a_way_that_is_worse_on_the_first_items_with_its_whole_interval_is_not_asked_the_others(tiny: LanguageModel):
    good, hopeless, middling = Told("a", 3), Told("b", COUNT), Told("c", COUNT - FIRST)
    found = chosen(tiny, good, hopeless, middling)
    assert {name: tried.informedness.n for name, tried in found.tried.items()} == {"a": COUNT, "b": FIRST, "c": COUNT}
    alone = chosen(tiny, hopeless, good)
    assert alone.tried["b"].informedness.n == COUNT, "nothing was better yet"
    assert found.way == alone.way == "a"
    unreadable = Told("d", mass=MIN_MASS - 0.1)
    only = chosen(tiny, unreadable, Told("e", 40))
    assert only.tried["e"].informedness.n == COUNT, "what is not valid is no reason to give up what may be"


def test_a_leaning_that_hides_what_base_knows_is_subtracted_where_the_items_share_their_options(tiny: LanguageModel):
    leaning = Told("a", 3, leans=(0.0, 5.0, 1.0))
    plain = chosen(tiny, leaning)
    assert (plain.label, plain.judged.informedness.value) == ("a", pytest.approx(0.0))
    found = chosen(tiny, leaning, Told("b", 30), centred=True)
    assert (found.way, found.label, list(found.tried)) == ("a", "a, centred", ["a", "a, centred", "b", "b, centred"])
    score_NK = leaning.ask(base_of(tiny), ITEMS).score_NK
    assert found.offset == pytest.approx((score_NK.mean(0) - score_NK.mean()).tolist())
    assert found.judged.accuracy == pytest.approx(1 - 3 / COUNT)


def test_a_way_in_which_nothing_could_be_scored_is_taken_only_where_all_are_such(tiny: LanguageModel):
    worse = Told("b", COUNT)  # than chance
    assert chosen(tiny, Told("a", deaf=True), worse, centred=True).way == "b"
    silent = chosen(tiny, Told("a", deaf=True), Told("c", deaf=True), centred=True)
    assert (silent.way, silent.offset, silent.judged.valid) == ("a", (), False)


def test_a_tokenizer_without_the_slot_of_a_way_leaves_that_way_out(tiny: LanguageModel):
    found = chosen(tiny, Told("a", slot=False), Told("b", 30), Told("c", 40))
    assert (found.way, list(found.tried)) == ("b", ["b", "c"])
    assert choose(of(Told("a", slot=False)), base_of(tiny), RESAMPLES, 0) is None
    for odd in (tokenizer(merges=[("(", "C")]), tokenizer(without="CD")):
        poor = base_of(replace(tiny, chat=Chat(odd)))
        for choice in (questions.choice(poor.setup), moral_foundations.choice(poor.setup)):
            few = replace(choice, apart=choice.apart[:7])
            tried = choose(few, poor, RESAMPLES, 0).tried
            left = {name for name in few.ways if not name.startswith("letters")}
            assert {name for name in tried if not name.endswith(", centred")} == left


def test_a_model_that_may_think_is_asked_only_in_ways_that_let_it_where_there_are_any(tiny: LanguageModel):
    ways = (Told("a", 6), Told("b", 40, aloud=True), Told("c", 50, aloud=True))
    for thinking, tried in ((0, ["a", "b", "c"]), (16, ["b", "c"])):
        assert list(chosen(tiny, *ways, thinking=thinking).tried) == tried, thinking
    assert list(chosen(tiny, Told("a"), Told("d", 3), thinking=16).tried) == ["a", "d"]
    base = base_of(tiny, vignettes=read_vignettes("embedded", 7), thinking=16)
    aloud = {choice.name: [way.thinks for way in choice.ways.values()] for choice in forced_choices(base.setup)}
    assert [sum(of_choice) for of_choice in aloud.values()] == [3, 0, 0]


def test_progress_is_told_way_by_way(tiny: LanguageModel):
    told: list[tuple[int, int]] = []
    choose(of(Told("a"), Told("b")), base_of(tiny), RESAMPLES, 0, lambda *both: told.append(both))
    assert told == [(1, 2), (2, 2)]


# What a run keeps.


def started(path: Path, model: Path) -> RunFolder:
    """A run of which nothing is finished but the format of its probe, that of letters."""
    folder = RunFolder(path)
    folder.start(load_recipe(["recipe=smoke", f"model.name={model}"]), Facts("float32", trait()))
    folder.finish(folder.baseline, "probe", {"probe.json": record_bytes(Probe(FORMATS[-1], {"letters": 0.975}))}, 0.0)
    return folder


def session(folder: RunFolder, model: tuple[LanguageModel, Accumulator], vignettes: int = 0) -> Session:
    """A start of the run."""
    scenes = read_vignettes("embedded", vignettes) if vignettes else ()
    return Session(folder.recipe(), trait(), folder, *model, Console(), Tracker(), scenes)


@pytest.fixture
def few_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight questions to choose by."""
    lines = questions.APART.read_text(encoding="utf-8").splitlines(keepends=True)
    (tmp_path / "few.jsonl").write_text("".join(lines[:8]), encoding="utf-8")
    monkeypatch.setattr(questions, "APART", tmp_path / "few.jsonl")


def test_the_way_that_was_chosen_is_kept_by_a_run_that_goes_on(tiny_folder: Path, tmp_path: Path, few_apart: None):
    """It is read from its file: another one, put there in its place, is used at every stage."""
    folder, model = started(tmp_path / "run", tiny_folder), student(tiny_folder)
    first = examine(session(folder, model)).setup
    assert list(first.asking) == [questions.CHOICE]
    again = examine(session(folder, model)).setup
    assert again.asking == first.asking
    ways = questions.choice(first).ways
    for name, way in ways.items():
        other = Asking(name)
        folder.finish(folder.baseline, "ways", Ways({questions.CHOICE: other}).files(), 0.0)
        kept = examine(session(folder, model)).setup
        assert kept.asking == {questions.CHOICE: other}
        (accuracy,) = [
            signal for signal in questions.measure(Subject(kept, "base", kept.base), []) if signal.name == "accuracy"
        ]
        items = questions.items_of(questions.QUESTIONS)[: kept.questions]
        right = way.ask(Subject(kept, "base", kept.base), items).chosen()
        assert accuracy.values == tuple(float(a == item.right) for a, item in zip(right, items, strict=True)), name


def test_a_run_that_measured_base_before_there_were_several_ways_asks_as_it_did(tiny_folder: Path, tmp_path: Path):
    folder = started(tmp_path / "run", tiny_folder)
    folder.finish(folder.baseline, "base", {}, 0.0)
    setup = examine(session(folder, student(tiny_folder), vignettes=7)).setup
    assert setup.asking == {}
    assert "ways" not in folder.seconds(folder.baseline)
    assert [setup.way_of(choice) for choice in forced_choices(setup)] == [
        "letters, options first, 2 orders",
        "letters, 1 order",
        "yes or no, letters",
    ]


def test_such_a_run_finds_of_base_what_it_found_then(tiny_folder: Path, tmp_path: Path):
    """Of the run that an earlier version left: every signal that it measured, of the answers that base gave then."""
    made = Path(__file__).resolve().parent / "data" / "run_format_1"
    folder = RunFolder(shutil.copytree(made, tmp_path / "run"))
    then = read_record(StageResult, folder.baseline / "base.json")
    setup = examine(session(folder, student(tiny_folder))).setup
    now = {signal.name: signal for signal in measure_all(Subject(setup, "base", setup.base), then.answers)}
    for signal in then.signals:
        # Its float32 was another processor's; values that are sums of many scores, or differences of two.
        assert now[signal.name].values == pytest.approx(signal.values, rel=1e-3, abs=1e-5), signal.name
    assert setup.probe == read_record(Probe, folder.baseline / "probe.json").format
    assert wrongness.choice(setup).before == f"yes or no, {setup.probe.name}"


def test_trackers_get_a_row_for_every_way_that_was_tried_with_the_chosen_one_marked(tiny: LanguageModel):
    asking = {"one": chosen(tiny, Told("a", 3), Told("b", 40)), "other": chosen(tiny, Told("c"), centred=True)}
    rows = way_rows(asking)
    assert [(row["question"], row["way"]) for row in rows] == [(q, way) for q in asking for way in asking[q].tried]
    assert [row["way"] for row in rows if row["chosen"]] == [one.label for one in asking.values()]
    assert all(list(row) == list(rows[0]) for row in rows), "a table has the columns of its first row"
    assert rows[0]["value"] == asking["one"].tried["a"].informedness.value
