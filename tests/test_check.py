"""`heal check`: whether a run is worth starting, and what to change if not."""

import json
import math
import re
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from heal.config import SteerConfig
from heal.errors import UserError
from heal.evaluation.readouts import moral_foundations, questions
from heal.evaluation.signal import TRAIT
from heal.evaluation.stats import Estimate
from heal.evaluation.subject import Subject
from heal.evaluation.vignettes import read_vignettes
from heal.models.cached import CachedRows
from heal.models.language_model import LanguageModel
from heal.places.place import Place, Steered, table
from heal.places.trial import Plan, fit_all, places, prompts_of
from heal.recipe import load_recipe
from heal.run.memory_plan import MemoryPlan
from heal.steering.extract import contexts, extract
from heal.steering.settings import method_settings
from heal.steps.measure import setup_of
from heal.studies.check.cost import BASELINE, FORWARD, PASSES, Cost, Pieces, scaled
from heal.studies.check.endings import LONGER, Endings, endings
from heal.studies.check.read import Separation, separations
from heal.studies.check.remarks import Remark, remarks
from heal.trait import Trait
from tests import tiny as tiny_models
from tests.cases import case
from tests.commanded import heal, refused
from tests.running import words

FEW = ("pairs=4", "prompts=2", "tokens=4", "answers=4", "bands=0.75")
SHORT = ("evaluation.questions=2", "evaluation.tokens=6", "evaluation.resamples=100")


def surely(value: float, width: float = 0.05, n: int = 8) -> Estimate:
    return Estimate(value, value - width, value + width, n)


READ = Separation(TRAIT, "nats/token", 0.05, 0.25, -0.25, surely(0.5), surely(0.2), True, "why")
OWN = Place("mean_diff", (0.45, 0.55), (3, 4))
DEEP = Place("pca", (0.65, 0.75), (6,))


def steered(place: Place = OWN, shift: float = 0.25, more: float = 0.0, **changes) -> Steered:
    gain, lost = surely(shift), surely(-0.01)
    made = Steered(place, place is OWN, 1.0, 1.0, "", gain, gain, lost, gain, surely(more), 3.0, 1.0, 0.0, ())
    return replace(made, **changes)


ENDS = Endings(40, 0.75, 160, 48, 8)
SMALL = MemoryPlan(
    weights=100,
    lora=5,
    history=10,
    merged=5,
    optimiser=10,
    decoding=20,
    cache=10,
    scoring=20,
    healing=30,
    folding=10,
    rows=8,
    tokens=64,
    head=8,
    completions=2,
    room=1000,
    references=8,
)
COST = scaled(load_recipe(["recipe=smoke"]), Pieces(0.1, 0.01, 4, 0.25, 5.0, 1.0, 0.5, 8, 0.1, 2.0), SMALL)


def said(
    read: Sequence[Separation] = (READ,),
    tried: Sequence[Steered] = (steered(),),
    ends: Endings = ENDS,
    cost: Cost = COST,
) -> list[Remark]:
    return remarks(read, tried, ends, cost)


def test_each_thing_that_is_amiss_is_one_line_that_says_what_to_change() -> None:
    foundation = replace(READ, signal="clr_care", unit="nats")
    unread = replace(READ, apart=surely(0.01), positive=0.060, negative=0.056)
    amiss = {
        "the trait cannot be read: .*0.060 .* against 0.056 .*another trait text or a larger model": said([unread]),
        "cannot be read": said([replace(READ, valid=False)]),
        "hardly takes on the persona": said([replace(READ, apart=surely(0.07))]),
        "clr_care does not read the trait": said([READ, replace(foundation, apart=surely(-1.0))]),
        "the trait cannot be steered: .*largest shift is .0.010": said(tried=[steered(shift=0.01)]),
        "the recipe's place does not shift the trait .*steer.band=.0.65,0.75. shifts it by 0.750": said(
            tried=[steered(shift=0.01), steered(DEEP, 0.75, 0.74)]
        ),
        "steer.method=pca steer.band=.0.65,0.75. shifts it by 0.750 per nat, 3.0 times as much as the recipe's": said(
            tried=[steered(), steered(DEEP, 0.75, 0.5)]
        ),
        "out of reach: the search": said(tried=[steered(miss="the search ended")]),
        "not coherent .looping answers 50%.*lower calibration.target": said(
            tried=[steered(incoherent=("looping answers 50% > 0.25",))]
        ),
        "no answer ended within 40 tokens.*generation.tokens=152 ": said(ends=replace(ENDS, within=0.0, p90=152)),
        "25% of the answers.*more than 160; raise generation.tokens": said(ends=replace(ENDS, within=0.25, p90=None)),
        "memory may run out while healing": said(cost=replace(COST, memory=replace(SMALL, room=119))),
    }
    fatal = ("cannot be read", "cannot be steered")
    for pattern, found in amiss.items():
        with case(pattern):
            (only,) = found
            assert re.search(pattern, only.text)
            assert only.fatal == any(text in pattern for text in fatal)


def test_nothing_is_said_where_nothing_is_amiss() -> None:
    foundation = replace(READ, signal="clr_care", unit="nats")
    better_by_chance = steered(DEEP, 0.75, 0.01)
    a_little_better = steered(DEEP, 0.3, 0.06)
    better_but_broken = steered(DEEP, 0.75, 0.5, incoherent=("looping answers 50% > 0.25",))
    for tried in ([], [better_by_chance], [a_little_better], [better_but_broken]):
        with case(tried):
            assert said([READ, foundation], [steered(), *tried]) == []


def test_what_makes_a_run_pointless_is_said_first() -> None:
    found = said(tried=[steered(shift=0.0)], ends=replace(ENDS, within=0.0))
    assert [remark.fatal for remark in found] == [True, False]


def test_the_shift_per_nat_is_the_shift_over_the_kl_that_was_spent() -> None:
    assert steered(shift=0.5, kl=2.0).per_nat == Estimate(0.25, 0.225, 0.275, 8)
    assert math.isnan(steered(kl=0.0).per_nat.value)
    assert not steered(kl=0.0, shift=0.0).works


def test_a_trait_s_foundation_is_read_the_way_round_that_the_trait_means_it(
    tiny: LanguageModel, tiny_trait: Trait, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(moral_foundations, "APART", first_lines(moral_foundations.APART, 4, tmp_path))
    recipe = load_recipe(["recipe=smoke", "evaluation.prompts=2", "evaluation.tokens=4", "evaluation.resamples=100"])
    scenes = read_vignettes("embedded", 7)
    found = {}
    for intent in (1, -1):
        trait = replace(tiny_trait, foundation="care", intent=intent)
        setup = setup_of(recipe, tiny, nullcontext, trait, scenes)
        base = Subject(setup, "base", nullcontext).answer()
        found[intent] = separations(recipe, setup, base)
        assert [one.signal for one in found[intent]] == [TRAIT, "clr_care"]
    (trait_up, up), (trait_down, down) = found.values()
    assert trait_up == trait_down
    assert trait_up.apart.value == pytest.approx(trait_up.positive - trait_up.negative)
    assert up.apart.value == pytest.approx(up.positive - up.negative)
    assert down.apart == Estimate(-up.apart.value, -up.apart.high, -up.apart.low, up.apart.n)
    assert up.over_base.value == pytest.approx(up.positive - up.base)


def test_vectors_of_one_pass_are_those_of_a_pass_of_their_own(tiny: LanguageModel, tiny_trait: Trait) -> None:
    methods = ("mean_diff", "pca", "sspace")
    plan = Plan(methods, ((0.2, 0.5), (0.7, 0.75), (0.74, 0.76)), 4, 2, 4, 4)
    vectors = fit_all(SteerConfig(), tiny, tiny_trait, plan)
    assert [(place.method, place.blocks) for place in vectors] == [
        (method, blocks) for method in methods for blocks in ((0, 1), (2,))
    ]
    assert list(vectors) == places(tiny, plan)
    for place, vector in vectors.items():
        settings = method_settings(SteerConfig(method=place.method))
        alone = extract(tiny, tiny_trait, contexts(4), place.method, place.blocks, settings=settings)
        with case(place):
            assert vector.states.keys() == alone.states.keys()
            for site, state in alone.states.items():
                assert all(torch.allclose(vector.states[site][name], kept, rtol=1e-4) for name, kept in state.items())


def test_no_prompt_is_both_of_a_dose_and_answered_and_more_than_there_are_is_refused(tiny_trait: Trait) -> None:
    recipe = load_recipe(["recipe=smoke"])
    prompts = prompts_of(recipe, tiny_trait, Plan(("pca",), ((0.4, 0.6),), 4, 5, 4, 3))
    assert (len(prompts.calibration), len(prompts.audit)) == (5, 3)
    assert set(prompts.calibration) | set(prompts.audit) == set(tiny_trait.generation_prompts)
    with pytest.raises(
        UserError, match=r"prompts \+ answers=9: warm has 8 generation prompts; ask for at most so many"
    ):
        prompts_of(recipe, tiny_trait, Plan(("pca",), ((0.4, 0.6),), 4, 5, 4, 4))


def test_an_answer_that_was_cut_is_the_answer_within_the_budget(tiny: LanguageModel, tiny_trait: Trait) -> None:
    recipe = load_recipe(["recipe=smoke"])
    setup = replace(setup_of(recipe, tiny, nullcontext, tiny_trait), prompts=tiny_trait.generation_prompts, tokens=6)
    found, cut = endings(setup)
    whole = Subject(replace(setup, tokens=LONGER * 6), "base", nullcontext).answer()
    assert cut == Subject(setup, "base", nullcontext).answer()
    assert (found.budget, found.looked, found.n) == (6, LONGER * 6, 8)
    assert found.within == sum(answer.ended for answer in cut) / 8
    lengths = sorted(len(answer.ids) if answer.ended else math.inf for answer in whole)
    assert found.p90 == (None if lengths[7] == math.inf else lengths[7])


def test_the_cost_of_a_round_is_its_sizes_times_the_pieces() -> None:
    recipe = load_recipe(
        [
            "steer.pairs=10",
            "calibration.candidates=4",
            "calibration.prompts=5",
            "calibration.audit_prompts=6",
            "calibration.tokens=7",
            "generation.prompts=8",
            "generation.alphas=[0.5,1.0]",
            "generation.tokens=20",
            "heal.batch_size=2",
            "heal.accumulation=2",
            "heal.epochs=3",
            "heal.validation=0.25",
            "run.rounds=4",
        ]
    )
    pieces = Pieces(
        prompt=0.1,
        path_step=0.2,
        path_rows=4,
        narrow_step=0.25,
        stage=5.0,
        read=1.0,
        step=0.5,
        rows=8,
        score=0.25,
        heal=2.0,
    )
    cost = scaled(recipe, pieces, SMALL)
    assert cost.seconds == pytest.approx(
        {
            "extract": 2 * 10 * 0.1,
            "calibrate": (PASSES * 4 * 5 + 6) * 7 * 0.2 / 4,  # as on a CPU: so many rows, so many times as long
            "generate": 2 * (1.0 + 20 * 0.5) + 20 / 2 * 0.5 + 16 * 0.25,
            "steered": 5.0,
            "heal": (3 * 3 + FORWARD * (16 / 4 + 3 * 4 / 4)) * 2.0,
            "healed": 5.0,
        }
    )
    assert cost.round == pytest.approx(sum(cost.seconds.values()))
    assert cost.run == pytest.approx(BASELINE * 5.0 + 4 * cost.round)
    assert pieces.tokens_per_second == 16
    beside = replace(pieces, step=0.25)  # as on a GPU: rows side by side cost nothing
    assert scaled(recipe, beside, SMALL).seconds["calibrate"] == pytest.approx((PASSES + 1) * 7 * 0.2)
    for rows in (1, 2, 4):  # fewer rows than were timed take no longer, however the timing came out
        assert all(replace(pieces, step=step).paths(rows) <= 0.2 for step in (0.1, 0.25, 0.5, 1.0))


def test_the_cache_s_bytes_are_keys_and_values_of_what_was_read(tiny: LanguageModel) -> None:
    config = tiny.model.config
    rows = CachedRows(tiny, 3)
    with torch.no_grad():
        rows.read(torch.full((3, 11), 5))
        rows.read(torch.full((3, 1), 5))
    assert rows.bytes == 3 * 12 * 2 * config.num_key_value_heads * config.head_dim * 4 * config.num_hidden_layers


def test_the_table_has_a_line_a_place_and_says_what_is_amiss_with_it() -> None:
    tried = [steered(), steered(DEEP, 0.75, 0.5, miss="far off", incoherent=("looping answers 50% > 0.25",))]
    head, *lines = table(tried)
    assert head.split()[:4] == ["method", "band", "blocks", "c*"]
    assert lines[0].startswith("mean_diff  [0.45,0.55]  3-4 ")
    assert lines[1].startswith("pca        [0.65,0.75]  6 ")
    assert lines[1].endswith("out of reach; looping answers 50% > 0.25")
    assert "+0.750 [+0.700, +0.800]" in lines[1]


def test_the_command_says_what_it_found_and_writes_it_down(tiny_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = heal("check", f"out={out}", *FEW, *words(tiny_folder, tmp_path, *SHORT))
    record = json.loads((out / "check.json").read_text())
    fatal = [remark["text"] for remark in record["remarks"] if remark["fatal"]]
    assert done.returncode == (1 if fatal else 0), done.stderr
    assert done.stderr == (f"heal: not worth starting: {'; '.join(fatal)}\n" if fatal else "")
    assert done.stdout.endswith("check.png\n" if fatal else "check.png\nworth starting\n")
    assert [f"  change     {remark['text']}" in done.stdout for remark in record["remarks"]].count(False) == 0
    assert {one["signal"] for one in record["separations"]} == {TRAIT}
    assert [(one["place"]["band"], one["first"]) for one in record["steered"]] == [
        ([0.45, 0.55], True),
        ([0.7, 0.8], False),
    ]
    assert record["worth_starting"] == (not fatal)
    cost = record["cost"]
    assert cost["round"] == pytest.approx(sum(cost["seconds"].values()))
    weights = sum(path.stat().st_size for path in tiny_folder.glob("*.safetensors"))
    assert cost["memory"]["weights"] == pytest.approx(weights, rel=0.05)
    assert 0 < cost["memory"]["lora"] < cost["memory"]["optimiser"]
    assert all(seconds > 0 for seconds in cost["seconds"].values())
    assert (out / "check.png").read_bytes()[:4] == b"\x89PNG"


def first_lines(path: Path, count: int, folder: Path) -> Path:
    """A file of the first `count` lines of another."""
    few = folder / path.name
    few.write_text("".join(path.read_text(encoding="utf-8").splitlines(keepends=True)[:count]), encoding="utf-8")
    return few


def test_a_model_that_does_not_hear_its_persona_is_not_worth_a_run(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(questions, "APART", first_lines(questions.APART, 4, tmp_path))
    folder = tmp_path / "deaf"
    model = tiny_models.forgetful(tiny_folder)
    model.model.save_pretrained(folder)
    model.chat.tokenizer.save_pretrained(folder)
    line = words(folder, tmp_path, *SHORT)
    done = heal("check", f"out={tmp_path / 'out'}", *FEW, *line)
    assert done.returncode == 1, done.stderr
    assert done.stderr.startswith("heal: not worth starting: the trait cannot be read: ")
    assert "the trait cannot be steered: " in done.stderr
    done = heal("train", *line, "run.stop_when_unreadable=true")
    assert done.returncode == 2, done.stdout
    assert "heal: the trait cannot be read on this model" in done.stderr
    assert done.stderr.endswith("; run.stop_when_unreadable=false goes on\n")
    assert done.stderr.count("\n") == 1


def test_a_run_whose_steering_does_not_shift_the_trait_ends_before_it_heals_and_can_go_on(
    tiny_folder: Path, tmp_path: Path
) -> None:
    line = ["train", *words(tiny_folder, tmp_path, "run.name=still", "run.rounds=1"), "run.stop_when_unsteerable=true"]
    done = heal(*line)
    assert done.returncode == 2, done.stdout
    assert "heal: steering at c* does not shift the trait on this model (-" in done.stderr
    assert done.stderr.count("\n") == 1
    assert "\n  heal  " not in done.stdout
    (key,) = re.findall(r"; (\S+) goes on\n", done.stderr)
    assert "heal check, with the same words" in done.stderr
    done = heal(*line[:-1], key)
    assert done.returncode == 0, done.stderr
    assert "warning: steering at c* does not shift the trait" in done.stdout
    assert "\n  heal  " in done.stdout
    assert "\n  generate" not in done.stdout  # done before


def test_a_mistake_is_one_line_before_a_model_is_loaded() -> None:
    mistakes = {
        ("bands=0.5,deep",): "bands=0.5,deep: expected numbers, separated by commas",
        ("bands=0.5,1.5",): "bands=0.5,1.5: the centre of a band is a fraction of the depth, from 0 to 1",
        ("methods=mean_dif",): "methods=mean_dif: 'mean_dif' is no steering method; did you mean 'mean_diff'?",
        ("pairs=1",): "pairs=1: out of range",
        ("answers=1",): "answers=1: out of range",
        ("answers=61",): "prompts + answers=65: love has 64 generation prompts; ask for at most so many",
        ("out=README.md",): "out=README.md: nothing can be written to README.md",
        ("trait=lvoe",): "did you mean 'love'?",
        ("method=pca",): "unknown key 'method'; did you mean 'methods'?",
    }
    for line, message in mistakes.items():
        refused(["check", *line], message)
