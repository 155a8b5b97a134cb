"""Calibration: the statistic is what docs/method.md, Dose, says, and its result is honest."""

import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path

import numpy
import pytest
import torch
from torch.nn.functional import kl_div, log_softmax

from heal.config import CalibrationConfig
from heal.decoding import decode
from heal.dose import find
from heal.dose.calibrate import Goal, Measure, calibrate, p95_error, path_divergences, prompt_divergence
from heal.dose.calibration import Calibration, PathDivergence
from heal.dose.find import Prompts, find_dose, odd_multiples, off_target, short_audit
from heal.models.language_model import LanguageModel
from heal.progress import Progress, silent
from heal.randomness import generator
from heal.records import read_record, record_bytes
from heal.steering.intervention import Dosing
from heal.steering.methods import METHODS
from heal.steering.vector import SteeringVector
from tests.cases import case
from tests.tiny import prompts, sized, trait, vector

TOKENS = 8


def measured(language_model: LanguageModel, steering_vector: SteeringVector, c: float, **settings) -> PathDivergence:
    return path_divergences(language_model, steering_vector, [c], prompts(language_model), TOKENS, **settings)[0]


def same(a: PathDivergence, b: PathDivergence) -> None:
    """Equal up to rounding."""
    assert asdict(a) == pytest.approx(asdict(b), rel=1e-3, abs=1e-5)


def calibrated(
    language_model: LanguageModel,
    steering_vector: SteeringVector,
    target: float,
    max_passes: int = 6,
    sign: int = 1,
    audit: Measure | None = None,
) -> Calibration:
    def measure(coefficients: Sequence[float]) -> list[PathDivergence]:
        asked = prompts(language_model)
        return path_divergences(language_model, steering_vector, [sign * c for c in coefficients], asked, TOKENS)

    return calibrate(measure, audit, Goal(target, 0.05, candidates=3, max_passes=max_passes))


def test_no_dose_diverges_by_nothing_but_rounding(architectures: dict[str, LanguageModel]):
    for name, tiny in architectures.items():
        with case(name):
            found = measured(tiny, vector(tiny), 0.0)
            assert max(found.p50, found.p95, found.mean, found.max) < 1e-9
            assert found.n == sum(len(each.ids) for each in decode(tiny, prompts(tiny), TOKENS))


def test_the_statistics_are_those_of_the_pooled_tokens_of_dense_passes(architectures: dict[str, LanguageModel]):
    for name, tiny in architectures.items():
        for c in [0.5, -8.0]:
            with case(name, c):
                asked, steering_vector = prompts(tiny), vector(tiny)
                pooled: list[float] = []
                for prompt in asked:
                    with torch.no_grad(), steering_vector.applied(tiny, c):
                        path = tiny.model.generate(
                            torch.tensor([prompt]),
                            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
                            max_new_tokens=TOKENS,
                            do_sample=False,
                        )
                        on = tiny.model(input_ids=path).logits[0, len(prompt) - 1 : -1]
                    with torch.no_grad():
                        off = tiny.model(input_ids=path).logits[0, len(prompt) - 1 : -1]
                    logp, logq = log_softmax(on.double(), -1), log_softmax(off.double(), -1)
                    pooled += kl_div(logq, logp, reduction="none", log_target=True).sum(-1).tolist()
                found = measured(tiny, steering_vector, c)
                assert found.n == len(pooled)
                expected = [*numpy.percentile(pooled, [50, 95]), numpy.mean(pooled), numpy.max(pooled)]
                assert [found.p50, found.p95, found.mean, found.max] == pytest.approx(expected, rel=1e-3, abs=1e-5)


def test_the_statistic_depends_neither_on_the_batches_nor_on_coefficients_beside_it(
    tiny: LanguageModel, architectures: dict[str, LanguageModel]
):
    same(measured(sized(tiny, 1, 1), vector(tiny), 2.0), measured(tiny, vector(tiny), 2.0))

    for name, tiny in architectures.items():
        with case(name):
            steering_vector, coefficients = vector(tiny), [0.5, -2.0, 3.0]
            asked = prompts(tiny)
            together = path_divergences(tiny, steering_vector, coefficients, asked, TOKENS)
            for c, found in zip(coefficients, together, strict=True):
                same(found, measured(tiny, steering_vector, c))


def test_the_statistic_is_quadratic_near_zero(tiny: LanguageModel):
    steering_vector = vector(tiny)
    asked, said = prompts(tiny), [each.ids for each in decode(tiny, prompts(tiny), TOKENS)]
    assert said == [each.ids for each in decode(tiny, asked, TOKENS, steering_vector, [2e-3] * len(asked))]
    small, twice = (measured(tiny, steering_vector, c).mean for c in (1e-3, 2e-3))
    assert twice / small == pytest.approx(4.0, rel=0.05)


def test_off_is_whatever_the_reference_context_makes_of_the_model(tiny: LanguageModel):
    steering_vector = vector(tiny)
    shifted = measured(tiny, steering_vector, 3.0, off=lambda: steering_vector.applied(tiny, 3.0))
    assert shifted.max < 1e-9
    assert measured(tiny, steering_vector, 3.0).p95 > 0.1


def test_a_dose_that_breaks_the_model_is_infinitely_far_and_leaves_those_beside_it_alone(tiny: LanguageModel):
    found = measured(tiny, vector(tiny), math.nan)
    assert found.p95 == math.inf
    assert found.n == 0

    sound, broken = path_divergences(tiny, vector(tiny), [1.0, math.nan], prompts(tiny), TOKENS)
    same(sound, measured(tiny, vector(tiny), 1.0))
    assert broken.p95 == math.inf


def test_what_a_calibration_says_is_so(architectures: dict[str, LanguageModel]):
    for name, tiny in architectures.items():
        for target in [0.5, 3.0]:
            with case(name, target):
                steering_vector = vector(tiny)
                found = calibrated(tiny, steering_vector, target)
                again = measured(tiny, steering_vector, found.c_star)
                assert found.value == pytest.approx(again.p95, rel=1e-4)
                assert (found.outcome == "tolerance") == (abs(found.value - target) <= 0.05)
                if found.outcome == "noise":
                    assert abs(found.value - target) <= 1.1 * again.p95_error
                assert found.on_target == (found.outcome in ("tolerance", "noise"))
                assert len(found.history) == 3 * found.passes <= 18


def test_a_calibration_reaches_a_small_target_and_one_cut_short_or_without_a_vector_says_that_it_did_not(
    tiny: LanguageModel,
):
    steering_vector = vector(tiny, norm=1e-3)
    found = calibrated(tiny, steering_vector, 0.06)
    assert found.on_target
    assert found.c_star > 10

    found = calibrated(tiny, vector(tiny, norm=1e-5), 1.0, max_passes=2)
    assert not found.on_target
    assert found.outcome == "unreachable"
    assert len(found.history) == 6

    found = calibrated(tiny, vector(tiny, norm=0.0), 1.0)
    assert found.outcome == "unreachable"
    assert found.value < 1e-9


def test_the_history_holds_every_evaluation_in_order(tiny: LanguageModel):
    steering_vector = vector(tiny)
    found = calibrated(tiny, steering_vector, 0.5)
    assert [entry.c for entry in found.history[:3]] == pytest.approx([0.5, 1.0, 2.0])
    assert [entry for entry in found.history if (entry.c, entry.p95) == (found.c_star, found.value)]
    for entry in found.history:
        same(entry, measured(tiny, steering_vector, entry.c))


def test_a_warm_start_looks_around_it(tiny: LanguageModel):
    asked: list[float] = []

    def measure(coefficients: Sequence[float]) -> list[PathDivergence]:
        asked.extend(coefficients)
        return [PathDivergence(c, c, c / 4, c, c, 1) for c in coefficients]

    found = calibrate(measure, None, Goal(tolerance=0.01, candidates=3), start=4.0)
    assert asked == pytest.approx([4 / 1.2, 4.0, 4 * 1.2])
    assert (found.c_star, found.passes) == (4.0, 1)


def test_either_sign_is_calibrated_by_itself(tiny: LanguageModel):
    steering_vector = vector(tiny)
    found = [calibrated(tiny, steering_vector, 0.3, sign=sign) for sign in (1, -1)]
    for calibration, sign in zip(found, (1, -1), strict=True):
        expected = measured(tiny, steering_vector, sign * calibration.c_star).p95
        assert calibration.value == pytest.approx(expected, rel=1e-4)
    assert found[0].c_star != found[1].c_star


def test_the_audit_is_measured_once_at_c_star_and_not_without_prompts_of_its_own(tiny: LanguageModel):
    steering_vector = vector(tiny)
    heldout = [tiny.chat.ids("", f"Held out {letter}") for letter in "abc"]
    audited: list[float] = []

    def audit(coefficients: Sequence[float]) -> list[PathDivergence]:
        audited.extend(coefficients)
        return path_divergences(tiny, steering_vector, coefficients, heldout, TOKENS)

    found = calibrated(tiny, steering_vector, 0.3, audit=audit)
    assert audited == [found.c_star]
    assert found.audit == path_divergences(tiny, steering_vector, [found.c_star], heldout, TOKENS)[0]
    assert found.audit not in found.history

    assert calibrated(tiny, vector(tiny), 0.3).audit is None


def test_progress_ends_when_the_calibration_does_and_counts_the_pass_at_zero():
    told: list[tuple[int, int]] = []

    def quadratic(coefficients: Sequence[float]) -> list[PathDivergence]:
        return [PathDivergence(c, c, c * c / 900, c, c, 1) for c in coefficients]

    goal = Goal(candidates=2)
    found = calibrate(quadratic, quadratic, goal, progress=lambda done, total: told.append((done, total)))
    assert told == sorted(told)
    assert told[-1] == (7, 7)
    assert len(told) == found.passes + 1 > 2

    told: list[tuple[int, int]] = []
    bounded(ALWAYS, progress=lambda done, total: told.append((done, total)))
    assert told[0] == (1, 8)
    assert told[-1] == (8, 8)
    assert told == sorted(told)


def test_the_goal_of_a_recipe_is_its_calibration_section():
    settings = CalibrationConfig(target=2.0, tolerance=0.1, candidates=3, max_passes=5, reference="base")
    assert Goal.of(settings) == Goal(target=2.0, tolerance=0.1, candidates=3, max_passes=5, reference="base")


def test_a_search_that_missed_says_how_it_ended_and_what_it_reached():
    for outcome, value, reached in (
        ("passes", 0.4, ""),
        ("unreachable", 0.4, ", and this is the most that any coefficient reached"),
        ("unreachable", 1.6, ", and this is the least that any coefficient reached"),
    ):
        with case(outcome, value):
            found = Calibration(0.25, value, 1.0, 0.05, outcome, 6, (), None, "student")
            said = f"p95 KL {value:.2f} nats at c = 0.250 against 1 asked; the search ended on '{outcome}'{reached}"
            assert (found.miss, found.on_target) == (said, False)


def test_a_calibration_written_to_a_file_and_read_again_is_the_same(tmp_path: Path):
    path = tmp_path / "calibration.json"
    for broken in (1.0, math.inf):
        history = tuple(PathDivergence(c, 0.1, value, 0.2, 3.0, 40) for c, value in ((1.0, 0.25), (2.0, broken)))
        for audit in (None, history[0]):
            calibration = Calibration(2.0, 1.0, 1.0, 0.05, "tolerance", 1, history, audit, "student")
            path.write_bytes(record_bytes(calibration))
            assert read_record(Calibration, path) == calibration


# What has a bound, or does something at coefficient 0


ALWAYS = Dosing(vanishes=False)


def bounded(
    dosing: Dosing, start: float | None = None, progress: Progress = silent
) -> tuple[Calibration, list[list[float]]]:
    """A calibration of `0.5 + 0.1 c^2`, with the coefficients of each pass."""
    asked: list[list[float]] = []

    def measure(coefficients: Sequence[float]) -> list[PathDivergence]:
        asked.append(list(coefficients))
        return [PathDivergence(c, c, 0.5 + 0.1 * c * c, c, c, 1) for c in coefficients]

    goal = Goal(candidates=3)
    return calibrate(measure, measure, goal, start=start, dosing=dosing, progress=progress), asked


def test_a_bound_ends_the_search_and_the_most_that_is_reached_is_the_result():
    found, asked = bounded(Dosing(largest=1.5))
    assert found.outcome == "unreachable"
    assert found.c_star == pytest.approx(1.5)
    assert found.value == pytest.approx(0.725)
    assert max(map(max, asked)) <= 1.5
    assert found.audit == PathDivergence(found.c_star, found.c_star, found.value, found.c_star, found.c_star, 1)


def test_what_does_something_at_zero_is_measured_there_first_and_zero_is_no_warm_start():
    found, asked = bounded(ALWAYS)
    assert asked[0] == [0.0]
    assert (found.history[0].c, found.history[0].p95) == (0.0, 0.5)
    assert found.on_target
    assert found.passes == len(asked) - 1  # the last one is the audit

    assert bounded(ALWAYS, start=0.0) == bounded(ALWAYS)


# Against the base


def drifted(c: float) -> float:
    """The statistic against the base, of a student that is 2 nats away from it by itself."""
    return 2 + c * c


def test_a_dose_against_the_base_is_measured_at_zero_too_and_is_none_where_the_drift_is_beyond_the_target(
    tiny: LanguageModel, monkeypatch: pytest.MonkeyPatch
):
    def measure(coefficients: Sequence[float]) -> list[PathDivergence]:
        return [PathDivergence(c, c, drifted(c), c, c, 1) for c in coefficients]

    found = calibrate(measure, None, Goal(candidates=3, reference="base"), start=3.0, dosing=ALWAYS)
    assert (found.c_star, found.value, found.outcome) == (0.0, 2.0, "unreachable")

    def curve(language_model, intervention, coefficients, prompts, tokens, off) -> list[PathDivergence]:
        against_base = off is not nullcontext
        return [PathDivergence(c, c, drifted(c) if against_base else c * c, c, c, 1) for c in coefficients]

    monkeypatch.setattr(find, "path_divergences", curve)
    steering = vector(tiny)
    for reference, c_star, outcome in (("base", 0.0, "unreachable"), ("student", 1.0, "tolerance")):
        goal = Goal(candidates=3, reference=reference)
        base = lambda: nullcontext()  # noqa: E731
        found = find_dose(tiny, steering, Prompts(("x",)), system="", tokens=4, goal=goal, base=base)
        assert (pytest.approx(found.c_star, abs=0.05), found.outcome) == (c_star, outcome), reference
        assert (found.history[0].c == 0) == (reference == "base")
        warned = " ".join(off_target("the dose of mean_diff", steering.dosing, found))
        assert ("the dose of mean_diff: c* = 0, so nothing is steered" in warned) == (reference == "base")
        assert ("calibration.reference=student" in warned) == (reference == "base")


# Multiples of a dose


def test_where_a_dose_below_1_does_not_shift_less_a_warning_says_so(tiny: LanguageModel):
    expected = {"angular": "shifts more and not less"}
    expected |= dict.fromkeys(("directional_ablation", "sspace_ablate"), "takes nothing of that back")
    for name in METHODS:
        warnings = odd_multiples(name, replace(vector(tiny), method=name).dosing)
        assert len(warnings) == (name in expected), name
        assert expected.get(name, "") in " ".join(warnings), name


# Prompts


def test_what_a_prompt_spends_is_the_kl_of_its_own_paths_to_the_neutral_prompt_which_spends_nothing(
    tiny: LanguageModel,
):
    shifted, neutral = prompts(tiny)[:2], prompts(tiny)[2:4]
    spent = prompt_divergence(tiny, shifted, neutral, 4)
    found = []
    for one, other in zip(shifted, neutral, strict=True):
        ids = list(one)
        for _ in range(4):
            said = ids[len(one) :]
            on, off = (
                torch.log_softmax(tiny.model(input_ids=torch.tensor([[*start, *said]])).logits[0, -1].double(), -1)
                for start in (one, other)
            )
            found.append(float((on.exp() * (on - off)).sum()))
            ids.append(int(on.argmax()))
    assert spent.n == len(found)
    assert spent.mean == pytest.approx(sum(found) / len(found), rel=1e-3)
    assert spent.max == pytest.approx(max(found), rel=1e-3)

    rows = prompts(tiny)[:3]
    spent = prompt_divergence(tiny, rows, rows, 5)
    assert (spent.c, spent.n) == (1.0, 15)
    assert spent.max < 1e-4


def test_an_audit_with_fewer_prompts_than_asked_for_is_said_with_what_took_them():
    for asked, left in ((8, 0), (5, 3), (4, 4)):
        settings = CalibrationConfig(prompts=asked, audit_prompts=4)
        drawn = Prompts.drawn(trait(), settings, seed=0)
        assert (len(drawn.calibration), len(drawn.audit)) == (asked, left)
        assert not set(drawn.calibration) & set(drawn.audit)
        assert short_audit(drawn, settings) == [
            f"the audit of the dose has {left} of calibration.audit_prompts=4 prompts: the trait has 8 generation "
            f"prompts, and calibration.prompts={asked} come first"
        ] * (left < 4)


def test_the_standard_error_of_p95_is_that_of_drawing_other_prompts():
    """Beside the spread of p95 over many draws of as many rows from a large pool; one row says nothing."""
    rows = [0.5 + torch.rand(16, generator=generator("row", seed)) * (1 + seed % 5) for seed in range(200)]
    picks = [torch.randperm(200, generator=generator("pick", seed))[:8].tolist() for seed in range(100)]
    samples = [[rows[index].double() for index in pick] for pick in picks]
    spread = torch.stack([torch.quantile(torch.cat(sample), 0.95) for sample in samples]).std()
    said = sum(p95_error(sample) for sample in samples) / len(samples)
    assert 0.6 * spread < said < 1.4 * spread
    assert p95_error(samples[0][:1]) == 0.0
