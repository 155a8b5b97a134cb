"""The filter drops what does not speak to its prompt: its limit, what falls below it, and rounds without it."""

import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median

import pytest

from heal.accumulator import Accumulator
from heal.decoding import Decoded, decode
from heal.errors import UserError
from heal.generation import relevance as of_texts
from heal.generation.collect import Collection, Completion, Request
from heal.generation.filters import FilterLimits
from heal.generation.relevance import LEAST, PromptCheck, Reading, Relevance, beginning
from heal.generation.sample import judged
from heal.models.language_model import LanguageModel
from heal.progress import silent
from heal.recipe import load_recipe
from heal.records import jsonl_bytes, read_jsonl
from heal.responding import Response
from heal.run.facts import Facts
from heal.run.folder import RunFolder
from heal.steps.generate import Generate
from heal.trait import Trait
from tests.cases import case
from tests.finished import as_earlier
from tests.plain import ASKED, NATS, about_prompts, greedy, rendered, texts
from tests.running import LOOSE
from tests.stages import NEUTRAL
from tests.students import student
from tests.tiny import forgetful, trait, vector

Model = tuple[LanguageModel, Accumulator]

LENIENT = FilterLimits(max_tail_perplexity=1e9, max_repetition=1.0, min_words=0, max_similarity=1.0)
OLD = Path(__file__).resolve().parent / "data" / "run_format_1"


@pytest.fixture(scope="module")
def healed(tiny_folder: Path) -> Model:
    """A tiny student with one folded round; leave it as it is."""
    return student(tiny_folder, rounds=1)


def check_of(language_model: LanguageModel) -> PromptCheck:
    """Of a model that is its own base."""
    return PromptCheck.of_base(language_model, nullcontext, NEUTRAL, ASKED, tokens=10, fraction=0.5)


def filtered(
    language_model: LanguageModel, check: PromptCheck | None, said: dict[str, Sequence[int]]
) -> list[Completion]:
    """What the filter makes of a text for each of some prompts."""
    return judged(
        language_model,
        [Request(index, prompt, 1.0) for index, prompt in enumerate(said)],
        [
            Response(tuple(prompt), (), Decoded(tuple(ids), ended=False))
            for prompt, ids in zip(rendered(language_model, list(said), NEUTRAL), said.values(), strict=True)
        ],
        base=nullcontext,
        limits=LENIENT,
        narration=(),
        check=check,
    )


def off(rows: Sequence[Completion]) -> list[bool]:
    return ["off prompt" in row.dropped for row in rows]


# The limit, and what falls below it.


def test_the_limit_is_a_fraction_of_what_base_s_own_answers_say_in_the_median(architectures: dict[str, LanguageModel]):
    model = architectures["gemma2"]  # its answers name their prompts with less than certainty
    base = partial(vector(model, norm=3.0).applied, model, 4.0)
    ids = rendered(model, system=NEUTRAL)

    def middle(tokens: int) -> float:
        said = about_prompts(model, [answer.ids for answer in decode(model, ids, beginning(tokens))], ids)
        return median(nats for nats, _ in said) / math.log(6)

    for tokens in (12, 40):
        with base():
            expected = middle(tokens)
        assert LEAST < expected < 0.9
        assert abs(middle(tokens) - expected) > 2 * NATS
        for fraction in (0.25, 1.0):
            check = PromptCheck.of_base(model, base, NEUTRAL, ASKED, tokens=tokens, fraction=fraction)
            assert check.limit == pytest.approx(fraction * expected, abs=NATS)
            assert (check.prompts, check.ids) == (ASKED, tuple(map(tuple, ids)))


def test_completions_of_other_prompts_are_dropped_and_those_of_their_own_are_kept(tiny: LanguageModel):
    check = check_of(tiny)
    own = [greedy(tiny, prompt, 10) for prompt in check.ids]
    first, second, *others = own
    for said, moved in [
        (own, [False] * 6),
        ([second, first, *others], [True] * 2 + [False] * 4),
        ([*own[1:], own[0]], [True] * 6),
        ([first] * 6, [False] + [True] * 5),
    ]:
        with case(moved):
            rows = filtered(tiny, check, dict(zip(ASKED, said, strict=True)))
            assert off(rows) == moved
            assert [row.on_prompt < check.limit for row in rows] == moved
            assert not any(off(filtered(tiny, None, dict(zip(ASKED, said, strict=True)))))


def test_a_completion_s_share_is_against_the_prompts_of_the_round_whatever_it_is_filtered_with(tiny: LanguageModel):
    check, said = check_of(tiny), texts(6)
    expected = [nats / math.log(6) for nats, _ in about_prompts(tiny, said, check.ids, check.tokens)]
    pairs = dict(zip(ASKED, said, strict=True))
    for some in (ASKED, ASKED[::-1], ASKED[2:4], ASKED[5:]):
        found = filtered(tiny, check, {prompt: pairs[prompt] for prompt in some})
        assert [row.on_prompt for row in found] == pytest.approx(
            [expected[ASKED.index(prompt)] for prompt in some], abs=NATS
        )


def test_only_a_share_below_a_limit_is_off_the_prompt(tiny: LanguageModel):
    check = check_of(tiny)
    for limit, share, dropped in [
        (0.4, 0.39, True),
        (0.4, -9.0, True),
        (0.4, 0.4, False),
        (0.4, math.nan, False),
        (0.0, -9.0, False),
    ]:
        assert replace(check, limit=limit).off(share) == dropped, (limit, share)
    (silent_row, *_) = filtered(tiny, check, dict(zip(ASKED, [(), *texts(5)], strict=True)))
    assert math.isnan(silent_row.on_prompt)
    assert silent_row.dropped == ("too short", "tail perplexity")


def test_base_s_answers_that_say_hardly_more_than_noise_set_no_limit(
    tiny: LanguageModel, monkeypatch: pytest.MonkeyPatch
):
    for share, limit in [(LEAST - 1e-6, 0.0), (LEAST + 1e-6, LEAST / 2), (-3.0, 0.0), (math.nan, 0.0)]:
        one = Relevance(share * math.log(6), 4, True, 5)
        readings = [*[Reading(2.0, one)] * 5, Reading(2.0, None)]
        monkeypatch.setattr(of_texts, "read_texts", lambda *given, readings=readings: readings)
        assert check_of(tiny).limit == pytest.approx(limit, abs=1e-5), share


# In a round.


def generate(model: Model, *words: str, about: Trait | None = None) -> Generate:
    """A round's sampling of a tiny model; at the lower dose it speaks to its prompts, at the higher one to none."""
    language_model, accumulator = model
    steering = replace(vector(language_model, norm=2.0), c_star=1.0)
    doses = ("generation.alphas=[0.1,1000]", "generation.prompts=6")
    recipe = load_recipe([*LOOSE, "filter.min_on_prompt=0.5", *doses, *words])
    return Generate(language_model, accumulator, about or trait(), steering, recipe, 0)


def made(step: Generate) -> Collection:
    return step.compute(silent)


def test_a_round_s_completions_are_held_to_what_base_says_about_its_prompts(healed: Model):
    model, accumulator = healed
    step = generate(healed, "filter.min_on_prompt=0.6", "filter.keep_target=1")
    found = made(step)
    asked = tuple(dict.fromkeys(row.prompt for row in found.rows))
    system, tokens = step.recipe.model.system, step.recipe.generation.tokens
    check = PromptCheck.of_base(model, accumulator.base, system, asked, tokens=tokens, fraction=0.6)
    assert len(asked) == 6
    assert found.scale < 1
    assert found.off_prompt_below == pytest.approx(check.limit, abs=NATS)
    assert off(found.rows) == [row.on_prompt < found.off_prompt_below for row in found.rows]
    assert any(off(found.rows))
    assert found.kept
    with accumulator.base():
        readings = check.read(model, *zip(*((row.prompt, row.prompt_ids, row.ids) for row in found.rows), strict=True))
    shares = [reading.relevance.share for reading in readings if reading.relevance is not None]
    assert [row.on_prompt for row in found.rows] == pytest.approx(shares, abs=NATS)
    assert not any("their prompts" in text for text in step.warnings(found))


def test_a_round_that_does_not_ask_computes_nothing_more_and_says_and_keeps_the_same(
    healed: Model, monkeypatch: pytest.MonkeyPatch
):
    asking = made(generate(healed))
    monkeypatch.setattr(of_texts, "respond", None)
    monkeypatch.setattr(of_texts, "rivals", None)
    step = generate(healed, "filter.min_on_prompt=0")
    found = made(step)
    assert found.off_prompt_below is None
    assert all(math.isnan(row.on_prompt) for row in found.rows)
    assert not any("their prompts" in text for text in step.warnings(found))
    for one, other in zip(found.rows, asking.rows, strict=True):
        rest = tuple(reason for reason in other.dropped if reason != "off prompt")
        assert other.tail_perplexity == pytest.approx(one.tail_perplexity, rel=1e-4)  # of another pass, in float32
        same = {"on_prompt": 0.0, "tail_perplexity": 0.0}
        assert replace(other, dropped=rest, **same) == replace(one, **same)


def test_a_prompt_alone_is_held_to_nothing(healed: Model):
    found = made(generate(healed, "generation.prompts=1"))
    assert len({row.prompt for row in found.rows}) == 1
    assert found.off_prompt_below is None
    assert all(math.isnan(row.on_prompt) for row in found.rows)


def test_a_base_that_says_nothing_about_its_prompts_drops_nothing_and_warns(tiny_folder: Path, healed: Model):
    model = forgetful(tiny_folder)
    accumulator = Accumulator(model, 4, 8, [1, 2])
    accumulator.start_round(0)
    alike = replace(
        trait(), generation_prompts=tuple(f"Say it{end}" for end in (".", "!", "?", ";", "...", "!!", "!?", ""))
    )
    for name, step in [("forgetful", generate((model, accumulator))), ("no rivals", generate(healed, about=alike))]:
        with case(name):
            found = made(step)
            assert found.off_prompt_below == 0.0
            assert not any(off(found.rows))
            assert "base's own answers say nothing about their prompts" in step.warnings(found)[0]


def test_what_is_dropped_does_not_depend_on_the_batches_of_the_walk_down(healed: Model):
    whole = made(generate(healed, "generation.probe=100"))
    for probe in (1, 2, 4):
        found = made(generate(healed, f"generation.probe={probe}"))
        assert found.off_prompt_below == whole.off_prompt_below
        for one, other in zip(found.rows, whole.rows, strict=True):
            with case(probe, one.index):
                assert one.on_prompt == pytest.approx(other.on_prompt, abs=NATS)
                assert one.tail_perplexity == pytest.approx(other.tail_perplexity, rel=1e-3)
                assert replace(one, on_prompt=0, tail_perplexity=0) == replace(other, on_prompt=0, tail_perplexity=0)


# Of earlier versions.


def test_a_run_from_before_the_filter_asked_goes_on_without_it_and_is_not_mixed_with_one_that_asks(tmp_path: Path):
    assert RunFolder(OLD).recipe().filter.min_on_prompt == 0.0
    run, facts = RunFolder(tmp_path / "run"), Facts("float32", trait())
    line, written = "  min_on_prompt: 0.0\n", run.path / "recipe.yaml"
    without = load_recipe(["recipe=smoke", "filter.min_on_prompt=0"])
    run.start(without, facts)
    assert line in written.read_text()
    written.write_text(written.read_text().replace(line, ""))
    as_earlier(run)
    assert run.as_begun(load_recipe(["recipe=smoke"]))[0].filter == without.filter
    asking, _ = run.as_begun(load_recipe(["recipe=smoke", "filter.min_on_prompt=0.4"]))
    with pytest.raises(UserError, match=r"filter\.min_on_prompt: 0\.0 there, 0\.4 asked"):
        run.start(asking, facts)
    assert run.start(without, facts)


def test_completions_of_an_earlier_version_are_read_as_not_asked():
    for folder in sorted((OLD / "rounds").iterdir()):
        rows = read_jsonl(folder / "completions.jsonl")
        found = Collection.load(folder)
        assert not any("on_prompt" in row for row in rows)
        assert found.off_prompt_below is None
        assert found.files()["completions.jsonl"] == jsonl_bytes(
            row | {"on_prompt": math.nan, "thought": []} for row in rows
        )
