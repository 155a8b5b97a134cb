"""Collecting a round's completions: coverage, the walk-down of the dose, and the making of each one."""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from heal.decoding import Sampling
from heal.errors import RoundError
from heal.generation.collect import Collection, Completion, Plan, Request, Sample, collect, dose_table
from heal.generation.filters import FilterLimits, tail_length
from heal.generation.relevance import tail_perplexities
from heal.generation.sample import Sampler
from heal.models.language_model import LanguageModel
from heal.progress import silent
from heal.run.files import write_files
from heal.steering.vector import SteeringVector
from tests.cases import case
from tests.tiny import load, sized, vector
from tests.tiny import prompts as tiny_prompts

PROMPTS = [f"prompt {number}" for number in range(10)]
ALPHAS = [0.5, 0.75, 1.0]
LOWEST = 0.25


def row(request: Request, reason: str | None) -> Completion:
    return Completion(
        index=request.index,
        prompt=request.prompt,
        alpha=request.alpha,
        prompt_ids=(1, 2),
        ids=(3, 4, 5),
        text=f"completion {request.index}",
        ended=False,
        tail_perplexity=10.0 * request.alpha,
        repetition=0.1,
        dropped=() if reason is None else (reason,),
    )


def surviving(bears: Callable[[Request], bool], reason: str = "repetition") -> Sample:
    """A maker whose completions survive where `bears` holds and are dropped for `reason` elsewhere."""

    def make(requests: Sequence[Request], kept_before: Sequence[str]) -> list[Completion]:
        return [row(request, None if bears(request) else reason) for request in requests]

    return make


def up_to(dose: float) -> Sample:
    """A maker for a model that bears doses up to `dose`."""
    return surviving(lambda request: request.alpha <= dose)


def gathered(make: Sample, max_probes: int = 6, **changes) -> Collection:
    prompts, progress = changes.pop("prompts", PROMPTS), changes.pop("progress", silent)
    plan = Plan(
        ALPHAS, probe=6, max_probes=max_probes, lowest_dose=LOWEST, keep_target=0.75, keep_floor=0.0, min_train=0
    )
    return collect(make, prompts, replace(plan, **changes), progress)


def test_where_enough_survive_every_prompt_is_asked_once_at_every_dose_whatever_the_size_of_the_probe():
    found = gathered(up_to(9.0))
    asked = Counter((each.prompt, each.alpha) for each in found.rows)
    assert asked == Counter((prompt, alpha) for prompt in PROMPTS for alpha in ALPHAS)

    every_fourth_dropped = surviving(lambda request: request.index % 4 != 0)
    assert gathered(every_fourth_dropped, keep_target=0.6).scale == 1.0

    for probe in [1, 3, 4, 6, 29, 30, 31, 100]:
        with case(probe):
            assert gathered(up_to(9.0), probe=probe) == gathered(up_to(9.0))


def test_the_walk_down_ends_just_below_the_dose_that_the_model_bears_or_with_its_probes():
    for dose in [0.26, 0.3, 0.41, 0.5, 0.62, 0.77, 0.9, 0.99]:
        for max_probes in [1, 3, 6]:
            with case(dose, max_probes):
                found = gathered(up_to(dose), max_probes)
                step = (1 / LOWEST) ** (0.5**max_probes)  # what is left of the bracket after so many bisections
                assert found.scale <= dose <= found.scale * step

    probed: list[int] = []

    def make(requests: Sequence[Request], kept_before: Sequence[str]) -> list[Completion]:
        probed.append(len(requests))
        return up_to(0.4)(requests, kept_before)

    gathered(make, max_probes=3)
    assert probed == [6, 6, 6, 6, 24]

    assert gathered(up_to(0.4), max_probes=0).scale == 1.0

    assert gathered(up_to(0.1)).scale == LOWEST


def test_after_a_walk_down_the_survivors_of_the_probes_are_kept_and_the_rest_is_made_at_the_lower_dose():
    found = gathered(up_to(0.6))
    rest = [each for each in found.rows if each.prompt in PROMPTS[2:]]
    assert {(each.prompt, each.alpha) for each in rest} == {
        (prompt, alpha * found.scale) for prompt in PROMPTS[2:] for alpha in ALPHAS
    }

    found = gathered(up_to(0.6))
    probes = [each for each in found.kept if each.prompt in PROMPTS[:2]]
    assert {each.alpha / alpha for each in probes for alpha in ALPHAS} > {1.0, found.scale}
    assert all(each in found.kept for each in found.rows if each.alpha <= 0.6)


def test_every_completion_has_an_index_of_its_own():
    for dose in [0.1, 0.6, 9.0]:
        for probe in [1, 4, 6, 30, 100]:
            with case(dose, probe):
                found = gathered(up_to(dose), probe=probe)
                assert [each.index for each in found.rows] == list(range(len(found.rows)))


def test_every_batch_is_filtered_against_all_that_was_kept_before():
    told: list[list[str]] = []

    def make(requests: Sequence[Request], kept_before: Sequence[str]) -> list[Completion]:
        told.append(list(kept_before))
        return up_to(0.6)(requests, kept_before)

    found = gathered(make)
    assert told[0] == []
    assert told[-1] == [each.text for each in found.kept if each.prompt in PROMPTS[:2]]
    assert all(set(before) <= set(after) for before, after in pairwise(told))


def test_progress_never_goes_back_and_ends_at_its_total():
    for dose in [0.1, 0.6, 9.0]:
        with case(dose):
            told: list[tuple[int, int]] = []
            found = gathered(up_to(dose), progress=lambda done, total: told.append((done, total)))
            assert told == sorted(told)
            assert all(done <= total for done, total in told)
            assert told[-1] == (len(found.rows), len(found.rows))


def test_too_few_or_too_small_a_share_stop_the_round_and_just_enough_lets_it_go_on():
    only_three = surviving(lambda request: request.index < 3, "tail perplexity")
    with pytest.raises(RoundError, match=r"only 3 of 30 .*needed: 4.*tail perplexity 27.*generation\.prompts"):
        gathered(only_three, max_probes=0, min_train=4)

    half = surviving(lambda request: request.index % 2 == 0, "refusal")
    with pytest.raises(RoundError, match=r"only 15 of 30 .*0\.6.*refusal 15"):
        gathered(half, max_probes=0, keep_floor=0.6)

    half = surviving(lambda request: request.index % 2 == 0)
    assert len(gathered(half, max_probes=0, keep_floor=0.5, min_train=15).kept) == 15


def test_the_error_counts_every_reason_names_a_scaled_dose_and_sends_to_a_run_of_its_own():
    def make(requests: Sequence[Request], kept_before: Sequence[str]) -> list[Completion]:
        return [row(request, "refusal" if request.index % 3 == 0 else "duplicate") for request in requests]

    with pytest.raises(RoundError, match="duplicate 20, refusal 10"):
        gathered(make, max_probes=0, min_train=1)

    for probes, said in [(0, False), (6, True)]:
        with case(probes, said):
            with pytest.raises(RoundError) as caught:
                gathered(surviving(lambda request: False), max_probes=probes, min_train=1)
            assert (f"the dose already scaled to {LOWEST}" in str(caught.value)) == said

    with pytest.raises(RoundError, match=r"in a run of its own \(run\.name=\.\.\.\)\.$") as caught:
        gathered(surviving(lambda request: False), max_probes=0, min_train=1)
    assert not caught.value.again


def test_the_dose_table_accounts_for_every_completion_and_leaves_out_perplexities_that_are_not_numbers():
    found = gathered(up_to(0.6))
    table = dose_table(found.rows)
    assert [entry.alpha for entry in table] == sorted({each.alpha for each in found.rows})
    assert sum(entry.count for entry in table) == len(found.rows)
    assert sum(round(entry.kept_share * entry.count) for entry in table) == len(found.kept)
    assert sum(sum(entry.dropped.values()) for entry in table) == len(found.rows) - len(found.kept)
    assert all(entry.tail_perplexity == pytest.approx(10 * entry.alpha) for entry in table)

    rows = [
        row(Request(0, "a", 1.0), None),
        replace(row(Request(1, "b", 1.0), None), tail_perplexity=math.nan),
    ]
    assert dose_table(rows)[0].tail_perplexity == 10.0
    assert math.isnan(dose_table(rows[1:])[0].tail_perplexity)


def test_a_collection_survives_the_files_it_is_kept_in(tmp_path: Path):
    rows = (row(Request(3, "Was it “so”?\u2028", 0.75), "repetition"), row(Request(4, "爱", 1.0), None))
    asked = Collection(tuple(replace(each, on_prompt=0.75) for each in rows), 0.5, 0.25, asked=7)
    write_files(tmp_path / "asked", asked.files())
    assert Collection.load(tmp_path / "asked") == asked
    write_files(tmp_path / "not asked", Collection(rows, 0.5).files())
    back = Collection.load(tmp_path / "not asked")
    assert all(math.isnan(each.on_prompt) for each in back.rows)
    assert replace(asked, off_prompt_below=None, asked=0) == replace(
        back, rows=tuple(replace(each, on_prompt=0.75) for each in back.rows)
    )


def test_cells_are_sampled_again_at_the_dose_that_serves_until_enough_are_kept_or_the_budget_is_spent():
    third, never = surviving(lambda request: request.index % 3 == 0), surviving(lambda request: request.alpha > 0.5)
    for make, keep, most, kept, rows in [
        (third, 0, 0, 10, 30),
        (third, 10, 99, 10, 30),
        (third, 14, 99, 14, 42),
        (third, 40, 99, 33, 99),
        (never, 60, 90, 60, 90),
        (never, 61, 90, 60, 90),
        (surviving(lambda request: False), 5, 35, 0, 35),
    ]:
        with case(keep, most):
            found = gathered(make, max_probes=0, keep=keep, most=most)
            assert found == gathered(make, max_probes=0, keep=keep, most=most)
            assert (len(found.kept), len(found.rows)) == (kept, rows)
            assert [each.index for each in found.rows] == list(range(rows))
            assert found.figures.asked == keep if kept else not found.kept
            tries = Counter((each.prompt, each.alpha) for each in found.rows)
            assert len(tries) == 30
            assert max(tries.values()) - min(tries.values()) <= 1
    hard = surviving(lambda request: request.index % 2 == 0)  # so that of the first pass every other cell is kept
    again = gathered(hard, max_probes=0, keep=20, most=45).rows[30:]
    first = {(each.prompt, each.alpha): each.kept for each in gathered(hard, max_probes=0).rows}
    assert not any(first[each.prompt, each.alpha] for each in again[:10])

    found = gathered(up_to(0.6), keep=40, most=120)
    assert len(found.kept) >= 40
    assert {each.alpha for each in found.rows[-5:]} <= {alpha * found.scale for alpha in ALPHAS}


# With a real, if tiny, model.

LENIENT = FilterLimits(max_tail_perplexity=1e9, max_repetition=1.0, min_words=0, max_similarity=1.0)
REQUESTS = [Request(number, f"Say {'much ' * (number % 4)}{number}.", ALPHAS[number % 3]) for number in range(9)]


def made(
    language_model: LanguageModel,
    base: Callable[[], AbstractContextManager[None]] = nullcontext,
    requests: Sequence[Request] = REQUESTS,
    seed: int = 0,
    limits: FilterLimits = LENIENT,
    narration: Sequence[str] = (),
    kept_before: Sequence[str] = (),
) -> list[Completion]:
    make = Sampler(
        language_model=language_model,
        base=base,
        intervention=steering(language_model),
        c_star=2.0,
        system="",
        tokens=16,
        sampling=Sampling(1.0, 0.95, 64),
        limits=limits,
        narration=narration,
        check=None,
        seed=(seed, 0, "generate"),
    )
    return make(requests, kept_before)


def steering(language_model: LanguageModel) -> SteeringVector:
    return vector(language_model, norm=2.0)


def dense_tail_perplexity(language_model: LanguageModel, prompt: Sequence[int], said: Sequence[int]) -> float:
    with torch.no_grad():
        logits = language_model.model(input_ids=torch.tensor([[*prompt, *said]])).logits[0].double()
    logprobs = torch.log_softmax(logits, -1)[len(prompt) - 1 : -1][range(len(said)), list(said)]
    return math.exp(-float(logprobs[-tail_length(len(said)) :].mean()))


def test_tail_perplexities_are_those_of_a_dense_pass(architectures: dict[str, LanguageModel]):
    for name, tiny in architectures.items():
        with case(name):
            asked = tiny_prompts(tiny)
            said = [[5], [7, 8, 9, 10, 11, 12], list(range(20, 41)), [200, 3], [9] * 8 + [2]]
            found = tail_perplexities(tiny, asked, said)
            dense = [dense_tail_perplexity(tiny, *pair) for pair in zip(asked, said, strict=True)]
            assert found == pytest.approx(dense, rel=1e-4)


def test_an_empty_completion_has_no_tail_perplexity_and_an_impossible_one_a_finite_one(
    tiny: LanguageModel, tiny_folder: Path
):
    asked = tiny_prompts(tiny, 3)
    found = tail_perplexities(tiny, asked, [[5, 6], [], [7]])
    assert math.isnan(found[1])
    assert [found[0], found[2]] == pytest.approx(tail_perplexities(tiny, [asked[0], asked[2]], [[5, 6], [7]]))

    broken = load(tiny_folder)
    with torch.no_grad():
        broken.model.lm_head.weight.mul_(1e6)
    assert math.isfinite(tail_perplexities(broken, tiny_prompts(broken, 1), [[5, 6, 7]])[0])


def test_what_is_made_depends_on_neither_batch_size(tiny: LanguageModel):
    for decode_batch, batch_tokens in [(1, 1), (2, 100), (4, 4096), (96, 150)]:
        with case(decode_batch, batch_tokens):
            alone = made(sized(tiny, batch_tokens, decode_batch))
            for found, expected in zip(alone, made(tiny), strict=True):
                assert found.tail_perplexity == pytest.approx(expected.tail_perplexity, rel=1e-4)
                assert replace(found, tail_perplexity=0) == replace(expected, tail_perplexity=0)


def test_what_a_cell_says_depends_on_its_own_index_and_the_seed_alone(tiny: LanguageModel):
    together = {each.index: each.ids for each in made(tiny)}
    assert {each.index: each.ids for each in made(tiny, requests=REQUESTS[::-2])} == {
        request.index: together[request.index] for request in REQUESTS[::-2]
    }

    assert [each.ids for each in made(tiny)] != [each.ids for each in made(tiny, seed=1)]


def test_a_made_row_holds_its_cell_and_the_sampled_ids_verbatim(tiny: LanguageModel):
    for request, each in zip(REQUESTS, made(tiny), strict=True):
        assert (each.index, each.prompt, each.alpha) == (request.index, request.prompt, request.alpha)
        assert list(each.prompt_ids) == tiny.chat.ids("", request.prompt)
        assert each.text == tiny.chat.decode(list(each.ids)).strip()
        assert each.ended == (each.ids[-1] in tiny.end_ids)


def test_the_dose_steers_what_is_made(tiny: LanguageModel):
    weak, strong = (made(tiny, requests=[Request(k, "Say it.", alpha) for k in range(4)]) for alpha in (0.0, 4.0))
    assert [each.ids for each in weak] != [each.ids for each in strong]


def test_the_tail_is_scored_by_base_and_not_by_the_steered_model(tiny: LanguageModel):
    for each in made(tiny):
        assert each.tail_perplexity == pytest.approx(dense_tail_perplexity(tiny, each.prompt_ids, each.ids), rel=1e-4)


def test_the_tail_is_scored_inside_the_base_context(tiny: LanguageModel):
    plain, inside = made(tiny), made(tiny, base=lambda: steering(tiny).applied(tiny, 5.0))
    assert [each.ids for each in plain] == [each.ids for each in inside]
    assert all(a.tail_perplexity != pytest.approx(b.tail_perplexity) for a, b in zip(plain, inside, strict=True))


def test_made_rows_carry_the_filter_s_reasons(tiny: LanguageModel):
    strict = FilterLimits(max_tail_perplexity=1.0, max_repetition=1.0, min_words=0, max_similarity=1.0)
    assert all("tail perplexity" in each.dropped for each in made(tiny, limits=strict))
    assert all("narration" in each.dropped for each in made(tiny, narration=(".",)) if each.text)


def test_a_row_that_repeats_what_was_kept_before_is_a_duplicate(tiny: LanguageModel):
    limits = FilterLimits(max_tail_perplexity=1e9, max_repetition=1.0, min_words=0, max_similarity=0.8)
    first = [each for each in made(tiny, limits=limits) if each.kept]
    again = made(tiny, limits=limits, kept_before=[each.text for each in first])
    assert first
    assert all(again[each.index].dropped == ("duplicate",) for each in first)


def test_logits_that_are_not_finite_drop_the_completion(tiny_folder: Path):
    broken = load(tiny_folder)
    with torch.no_grad():
        broken.model.lm_head.weight[5:7] = math.nan
    assert {each.dropped for each in made(broken)} == {("not finite",)}
