"""Survival: rollouts against computations of one row at a time, deaths and censoring, and the curves they give."""

import json
import math
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from heal.divergence import kl_divergence
from heal.errors import UserError
from heal.evaluation.probe import FORMATS, interruption
from heal.evaluation.readouts.alive import ALIVE
from heal.models.language_model import LanguageModel
from heal.records import as_record
from heal.steering.intervention import Dosing
from heal.studies.survival.curves import survival
from heal.studies.survival.rollouts import (
    Trajectory,
    by_alpha,
    coefficients_at,
    death_of,
    fork_positions,
    roll_out,
    slot_masses,
)
from heal.studies.survival.table import csv_text, markdown, rows
from tests import tiny
from tests.cases import case
from tests.survived import trajectory

TOKENS, FORKS = 8, 2
PROBE = FORMATS[1]  # so short that sharing pays even in a model as narrow as these
DOSES = coefficients_at(2.0, (0, 1))


@pytest.fixture(scope="module")
def models(architectures: dict[str, LanguageModel]) -> dict[str, LanguageModel]:
    """A tiny model whose rows share what they begin with, and one with a sliding window, whose rows do not."""
    return {name: architectures[name] for name in ("llama", "gemma3_text")}


def rolled(model: LanguageModel, doses=DOSES, prompts: Sequence[Sequence[int]] | None = None, **changes):
    settings = {"tokens": TOKENS, "forks": FORKS, "probe_format": PROBE} | changes
    return roll_out(
        model, tiny.vector(model), doses, tiny.prompts(model, 2) if prompts is None else prompts, **settings
    )


def fixed_head(folder: Path, token: int | Sequence[int]) -> LanguageModel:
    """A model that puts all its mass on `token`, whatever it reads."""
    model = tiny.load(folder)
    head = model.model.get_output_embeddings()
    torch.nn.init.zeros_(head.weight)
    head.bias = torch.nn.Parameter(torch.zeros(head.weight.shape[0]), requires_grad=False)
    head.bias[token] = 50.0
    return model


# Divergence.


def test_kl_at_alpha_0_is_exactly_0(models: dict[str, LanguageModel]):
    for name, model in models.items():
        with case(name):
            at_0 = [each for each in rolled(model) if each.alpha == 0]
            assert len(at_0) == 2
            assert all(each.kl == (0.0,) * len(each.ids) for each in at_0)


class Always:
    """A shift that even coefficient 0 does not undo."""

    dosing = Dosing(vanishes=False)

    def __init__(self, model: LanguageModel):
        self.vector = tiny.vector(model)

    def applied(self, language_model, coefficient):
        return self.vector.applied(language_model, 5 + torch.as_tensor(coefficient))


def test_alpha_0_is_the_model_without_the_intervention_where_coefficient_0_does_something(
    models: dict[str, LanguageModel],
):
    for name, model in models.items():
        with case(name):
            prompts = tiny.prompts(model, 2)
            settings = {"tokens": TOKENS, "forks": FORKS, "probe_format": PROBE}
            always = roll_out(model, Always(model), {0.0: 0.0, 1.0: 1.0}, prompts, **settings)
            plain = roll_out(model, tiny.vector(model), {0.0: 0.0}, prompts, **settings)
            assert [each.ids for each in always[:2]] == [each.ids for each in plain]
            assert [each.kl for each in always[:2]] == [each.kl for each in plain]
            for one, other in zip(always[:2], plain, strict=True):
                assert one.masses == pytest.approx(other.masses, rel=1e-4)
            assert all(max(each.kl) > 0 for each in always[2:])


def test_kl_is_that_of_dense_passes_over_the_path(models: dict[str, LanguageModel]):
    for name, model in models.items():
        with case(name):
            prompts, vector = tiny.prompts(model, 2), tiny.vector(model)
            for each in rolled(model, prompts=prompts):
                row = torch.tensor([[*prompts[each.prompt], *each.ids[:-1]]])
                with torch.no_grad():
                    off = model.model(input_ids=row).logits[0, -len(each.ids) :]
                    with vector.applied(model, each.coefficient):
                        on = model.model(input_ids=row).logits[0, -len(each.ids) :]
                assert each.kl == pytest.approx(kl_divergence(on, off).tolist(), rel=1e-3, abs=1e-6)


def test_the_reference_answers_in_the_context_it_is_given(tiny_folder: Path):
    model = tiny.load(tiny_folder)
    other = tiny.vector(model)

    @contextmanager
    def off():
        with other.applied(model, 3.0):
            yield

    plain, against_other = rolled(model), rolled(model, off=off)
    assert [each.ids for each in against_other] == [each.ids for each in plain]
    assert all(min(each.kl) > 0 for each in against_other if each.alpha == 0)


# Forks.


def test_the_forks_of_a_rollout_are_probed_as_each_is_alone(models: dict[str, LanguageModel]):
    for name, model in models.items():
        with case(name):
            prompts, vector = tiny.prompts(model, 2), tiny.vector(model)
            splice, answers = interruption(model, PROBE)
            for each in rolled(model, prompts=prompts):
                for fork, mass in zip(each.forks, each.masses, strict=True):
                    with torch.no_grad(), vector.applied(model, each.coefficient):
                        row = torch.tensor([[*prompts[each.prompt], *each.ids[:fork], *splice]])
                        p_V = torch.softmax(model.model(input_ids=row).logits[0, -1].double(), -1)
                    assert mass == pytest.approx(float(p_V[answers].sum()), rel=1e-4)


def test_what_the_forks_of_a_rollout_share_is_computed_once(tiny: LanguageModel):
    """Counted in tokens that go through the decoder."""
    splice, answers = interruption(tiny, PROBE)
    said = list(range(40, 80))
    seen = []
    hook = tiny.model.get_input_embeddings().register_forward_hook(
        lambda _, inputs, out: seen.append(inputs[0].numel())
    )
    try:
        slot_masses(tiny, [said[:fork] for fork in (36, 38, 40)], splice, answers)
    finally:
        hook.remove()
    assert sum(seen) == len(said) + 3 * len(splice)


def test_forks_are_evenly_spread_and_what_does_not_fit_the_tokens_or_the_context_is_refused(tiny: LanguageModel):
    assert fork_positions(64, 4) == (16, 32, 48, 64)
    assert fork_positions(5, 5) == (1, 2, 3, 4, 5)

    for forks in [0, 9]:
        with case(forks), pytest.raises(UserError, match=f"forks={forks}"):
            rolled(tiny, forks=forks)

    with pytest.raises(UserError, match="tokens=1024"):
        rolled(tiny, tokens=1024)


def test_multiples_of_a_dose_end_at_the_largest_coefficient():
    assert coefficients_at(0.6, (0, 1, 2), largest=1.0) == {0: 0, 1: 0.6, 2: 1.0}
    assert coefficients_at(0.6, (0, 1, 2)) == {0: 0, 1: 0.6, 2: 1.2}


# A rollout and its neighbours.


def test_a_rollout_does_not_depend_on_its_neighbours(models: dict[str, LanguageModel]):
    for name, model in models.items():
        with case(name):
            prompts = tiny.prompts(model, 2)
            for each in rolled(model, prompts=prompts):
                (alone,) = rolled(model, {each.alpha: each.coefficient}, [prompts[each.prompt]])
                assert (alone.ids, alone.ended, alone.forks, alone.death) == (
                    each.ids,
                    each.ended,
                    each.forks,
                    each.death,
                )
                assert alone.kl == pytest.approx(each.kl, rel=1e-3, abs=1e-6)
                assert alone.masses == pytest.approx(each.masses, rel=1e-4)


def test_rollouts_come_by_alpha_and_prompt_as_given_and_progress_reaches_its_total(tiny: LanguageModel):
    told = []
    found = rolled(tiny, {1.0: 2.0, 0.0: 0.0}, progress=lambda done, total: told.append((done, total)))
    assert [(each.alpha, each.prompt) for each in found] == [(1.0, 0), (1.0, 1), (0.0, 0), (0.0, 1)]
    assert told == sorted(told)
    assert told[-1] == (12, 12)


# Dead, ended, alive.


def test_the_first_fork_below_the_limit_or_with_logits_that_are_not_finite_is_the_death():
    for masses, death in [
        ((0.9, 0.9, 0.9), None),
        ((0.9, 0.1, 0.9), 8),
        ((0.1, 0.9, 0.9), 4),
        ((0.9, 0.9, ALIVE - 0.01), 12),
        ((ALIVE, ALIVE, ALIVE), None),
        ((0.9, math.nan, 0.9), 8),
    ]:
        with case(masses, death):
            assert death_of((4, 8, 12), masses, (0.1,) * 12, True) == death

    assert death_of((4,), (0.9,), (0.1,) * 6, finite=False) == 6
    assert death_of((4, 8), (0.9, 0.9), (0.1, 0.1, math.nan, 0.1, 0.1, 0.1, 0.1, 0.1), finite=True) == 2
    assert death_of((), (), (), finite=False) == 0


def test_a_model_that_always_answers_is_censored_at_the_budget_and_one_that_never_does_dies_at_the_first_fork(
    tiny_folder: Path,
):
    answers = interruption(tiny.load(tiny_folder), PROBE)[1]
    model = fixed_head(tiny_folder, answers)
    for each in rolled(model):
        assert (each.death, each.censored_at, each.ended) == (None, TOKENS, False)
        assert each.forks == (4, 8)
        assert each.masses == pytest.approx((1.0,) * FORKS)

    for each in rolled(fixed_head(tiny_folder, 100)):
        assert (each.death, each.censored_at, len(each.ids)) == (4, None, TOKENS)


def test_a_rollout_that_ended_is_censored_before_its_end_of_turn_and_neither_probed_nor_at_risk_after_it(
    tiny_folder: Path,
):
    end = min(tiny.load(tiny_folder).end_ids)
    for each in rolled(fixed_head(tiny_folder, end)):
        assert (each.ids, each.ended, each.death, each.censored_at, each.forks) == ((end,), True, None, 0, ())

    end = min(tiny.load(tiny_folder).end_ids)
    (ended,) = rolled(fixed_head(tiny_folder, end), {1.0: 0.0}, tiny.prompts(tiny.load(tiny_folder), 1), forks=TOKENS)
    assert survival([ended, trajectory(death=1)]).survival[-1] == 0


def test_a_shift_beyond_all_numbers_is_a_death_before_the_first_token(tiny: LanguageModel):
    first, second = rolled(tiny, {0.0: 0.0, 4.0: math.inf}, tiny_prompts(tiny))
    assert first.finite
    assert (second.finite, second.ids, second.kl, second.death) == (False, (), (), 0)


def tiny_prompts(model: LanguageModel) -> list[list[int]]:
    return tiny.prompts(model, 1)


def test_a_trajectory_survives_json(tiny: LanguageModel):
    for each in rolled(tiny):
        assert as_record(Trajectory, json.loads(json.dumps(asdict(each))), "here") == each


# Curves.


def test_survival_is_that_worked_out_by_hand():
    # Five rollouts: deaths at 4 and 8, one ended after 6, two censored at 12: 4/5, then 4/5 * 2/3.
    curve = survival(
        [trajectory(death=4), trajectory(death=8), trajectory(length=7, ended=True), trajectory(), trajectory()]
    )
    assert curve.times == (0, 4, 6, 8, 12)
    assert curve.survival == pytest.approx((1, 0.8, 0.8, 0.8 * 2 / 3, 0.8 * 2 / 3))
    assert (curve.n, curve.deaths, curve.censored, curve.median) == (5, 2, (6, 12, 12), math.inf)
    # log(-log S) has the variance sum(d / (r (r - d))) / log(S)^2 (Kalbfleisch and Prentice).
    s = 0.8 * 2 / 3
    spread = 1.959964 * math.sqrt(1 / (5 * 4) + 1 / (3 * 2)) / math.log(s)
    assert (curve.low[-1], curve.high[-1]) == pytest.approx((s ** math.exp(-spread), s ** math.exp(spread)), rel=1e-5)

    curve = survival([trajectory(death=4), trajectory(death=8), trajectory(), trajectory()])
    assert curve.median == 8

    curve = survival([trajectory(length=0, death=0), trajectory()])
    assert (curve.times, curve.survival, curve.median) == ((0, 12), (0.5, 0.5), 0)

    assert survival([trajectory(length=4), trajectory(death=4)]).survival[-1] == 0.5


def test_without_deaths_survival_stays_at_1_and_where_all_die_at_once_it_falls_to_0():
    for ended in [False, True]:
        with case(ended):
            curve = survival([trajectory(length=length, ended=ended) for length in (3, 7, 12)])
            assert curve.survival == (1.0,) * 4
            assert all(math.isnan(edge) for edge in (*curve.low, *curve.high))
            assert (curve.deaths, curve.median) == (0, math.inf)

    curve = survival([trajectory(death=4)] * 3)
    assert (curve.times, curve.survival, curve.median) == ((0, 4), (1, 0), 4)
    assert math.isnan(curve.low[-1])


def test_a_curve_is_of_one_alpha_and_says_what_is_alive_after_a_time():
    curve = survival([trajectory(death=4), trajectory()])
    assert [curve.at(time) for time in (0, 3, 4, 12, 99)] == [1, 1, 0.5, 0.5, 0.5]

    for given in [[], [trajectory(alpha=1), trajectory(alpha=2)]]:
        with case(given), pytest.raises(ValueError, match="one alpha"):
            survival(given)


# The table.


def test_the_table_has_a_row_an_alpha_from_the_smallest_on_with_its_counts():
    given = [
        trajectory(alpha=2, death=4),
        trajectory(alpha=2, length=6, ended=True),
        trajectory(alpha=2),
        trajectory(alpha=0, kl=(0.0,) * 12),
    ]
    off, on = rows(given, target=1.0)
    assert (off.alpha, off.n, off.kl_p50, off.kl_p95, off.under_target, off.deaths) == (0, 1, 0, 0, 1, 0)
    assert (on.alpha, on.n, on.deaths, on.censored, on.ended) == (2, 3, 1, 2, 1)
    assert on.survival == pytest.approx(2 / 3)
    assert on.low < on.survival < on.high

    assert list(by_alpha([trajectory(alpha=2), trajectory(alpha=0.5), trajectory(alpha=2)])) == [0.5, 2]


def test_statistics_of_kl_are_pooled_over_tokens_and_one_that_is_not_finite_is_above_any_target():
    (row,) = rows([trajectory(kl=(0.0, 1.0, 2.0)), trajectory(kl=(3.0, 4.0))], target=2.0)
    assert (row.kl_p50, row.kl_p95, row.under_target) == (2.0, pytest.approx(3.8), pytest.approx(0.6))

    (row,) = rows([trajectory(kl=(0.1, math.nan)), trajectory(kl=(0.1, math.inf))], target=1.0)
    assert (row.kl_p95, row.under_target) == (math.inf, 0.5)


def test_the_table_as_text_leaves_out_what_is_not_there():
    dead = replace(trajectory(length=0, death=0), finite=False)
    found = rows([dead, trajectory(alpha=2, death=4), trajectory(alpha=2)], target=1.0)
    text = markdown(found, 1.0)
    assert "nan" not in text + csv_text(found)
    assert len({line.count("|") for line in text.splitlines()[:4]}) == 1
    assert len(csv_text(found).splitlines()) == 3
