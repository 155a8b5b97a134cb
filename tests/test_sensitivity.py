"""Planted damage, measured: every kind once, nothing noticed where nothing is spoilt, and weights as they were."""

import csv
import io
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from heal.config import EvaluationConfig
from heal.evaluation.evaluate import evaluate
from heal.evaluation.neutral import NeutralTexts
from heal.evaluation.readouts import judge
from heal.evaluation.readouts.thoughts import UNCLOSED
from heal.evaluation.results import StageResult
from heal.evaluation.signal import limited, limits_of, signals
from heal.evaluation.subject import Subject
from heal.records import record_bytes
from heal.studies.planted_damage.damage import KINDS
from heal.studies.planted_damage.sensitivity import (
    NOISE,
    SIZES,
    WEIGHTS,
    Finding,
    damages,
    findings,
    plant,
    smallest,
    table,
)
from tests.commanded import heal
from tests.running import words
from tests.stages import setup
from tests.tiny import load, trait

LIMITS = limits_of(EvaluationConfig())
RESAMPLES, SEED, TOKENS = 100, 0, 8
PROMPTS = trait().heldout_prompts
COUNTED = ("answer_tokens", "ended_share", "refusal_share")
OF_ANSWERS = {
    *("tail_perplexity", "repetition_share", "alive_share", "probe_mass", "scaffold_nats", *COUNTED),
    *("identified_share", "relevance"),
}
# Here the model is not to think, and there is no judge.
NOT_ASKED = {UNCLOSED.name, *(signal.name for signal in judge.SIGNALS)}
OF_EVERYTHING = {name for name, signal in signals().items() if signal.items != "vignettes"} - NOT_ASKED
LIMITED = [name for name in limited() if name in OF_EVERYTHING]


@dataclass
class Planted:
    """What planting gave, in order, and whether the weights were the same bits after each."""

    base: StageResult
    again: StageResult
    damage: list[tuple[str, float, StageResult]]
    untouched: list[bool]


def bits(subject: Subject) -> dict[str, torch.Tensor]:
    state = subject.setup.language_model.model.state_dict()
    return {name: tensor.clone().view(torch.uint8) for name, tensor in state.items()}


@pytest.fixture(scope="module")
def planted(tiny_folder: Path) -> Planted:
    """Every damage on a tiny model."""
    model = load(tiny_folder)
    asked = setup(model, system="", tokens=TOKENS, questions=2, neutral_texts=NeutralTexts(model, "", 2))
    about = Subject(asked, "base", nullcontext)
    before, base = bits(about), evaluate(about)
    damage, untouched = [], []
    for entry in plant(about, base, SEED):
        damage.append(entry)
        after = bits(about)
        untouched.append(all(torch.equal(after[name], before[name]) for name in before))
    return Planted(base, evaluate(about), damage, untouched)


def found(planted: Planted, kind: str, size: float) -> list[Finding]:
    (result,) = [result for name, share, result in planted.damage if (name, share) == (kind, size)]
    return findings(kind, size, result, planted.base, LIMITS, RESAMPLES, SEED)


# What is planted.


def test_every_kind_is_planted_at_every_size_once(planted: Planted):
    done = [(kind, size) for kind, size, _ in planted.damage]
    assert done == damages()
    assert len(set(done)) == len(done) == len(KINDS) * len(SIZES) + len(NOISE)
    assert {kind for kind, _ in done} == {*KINDS, WEIGHTS}


def test_planting_leaves_the_weights_and_base_bit_for_bit_as_they_were(planted: Planted):
    assert all(planted.untouched)

    assert record_bytes(planted.again) == record_bytes(planted.base)  # NaN where nothing was scored


def test_noise_in_the_weights_is_there_while_the_model_answers(planted: Planted):
    said = tuple(answer.ids for answer in planted.base.answers)
    noisy = [tuple(a.ids for a in result.answers) for kind, _, result in planted.damage if kind == WEIGHTS]
    assert len({said, *noisy}) == 1 + len(NOISE)
    (strong,) = [result for kind, size, result in planted.damage if (kind, size) == (WEIGHTS, NOISE[-1])]
    assert all(value > 0 for value in strong.signal("neutral_kl_p50").values)


def test_damage_to_texts_is_of_base_s_own_answers_and_measured_by_what_is_read_off_them(planted: Planted):
    for kind, _, result in planted.damage:
        if kind != WEIGHTS:
            assert [answer.prompt for answer in result.answers] == list(PROMPTS)
            assert any(a.ids != b.ids for a, b in zip(result.answers, planted.base.answers, strict=True))

    for kind, size in damages():
        names = {finding.signal for finding in found(planted, kind, size)}
        assert names == (OF_EVERYTHING if kind == WEIGHTS else OF_ANSWERS)


# What is noticed.


def test_undamaged_answers_are_noticed_by_nothing(planted: Planted):
    nothing = findings("none", 0.0, planted.base, planted.base, LIMITS, RESAMPLES, SEED)
    assert {finding.signal for finding in nothing} == OF_EVERYTHING
    assert not any(finding.noticed for finding in nothing)
    scored = [finding.shift for finding in nothing if finding.shift.n]
    assert len(scored) > len(limited())
    assert all(shift.value == shift.low == shift.high == 0.0 for shift in scored)


def test_answers_that_were_cut_in_half_are_noticed_by_their_length_on_any_model(planted: Planted):
    (length,) = [finding for finding in found(planted, "cut off", 0.5) if finding.signal == "answer_tokens"]
    assert length.shift.value < 0


def stage(name: str, values: Sequence[float]) -> StageResult:
    return StageResult("x", (), (signals()[name].measured(values),))


def judged(name: str, base: float, value: float) -> Finding:
    """The finding for a signal that went from one value to another on every item."""
    (finding,) = findings("k", 0.5, stage(name, [value] * 4), stage(name, [base] * 4), LIMITS, RESAMPLES, SEED)
    return finding


def test_a_move_to_the_bad_side_is_noticed_unless_it_could_be_chance():
    for name in OF_EVERYTHING:
        rises = signals()[name].better == "lower"
        assert judged(name, 0.5, 0.75 if rises else 0.25).noticed, name
        assert judged(name, 0.5, 0.25 if rises else 0.75).noticed == (name in COUNTED), name
        assert not judged(name, 0.5, 0.5).noticed, name

    for name in OF_EVERYTHING:
        moved, base = stage(name, [0.9, 0.1, 0.9, 0.1]), stage(name, [0.1, 0.9, 0.1, 0.9])
        (finding,) = findings("k", 0.5, moved, base, LIMITS, RESAMPLES, SEED)
        assert not finding.noticed


def test_a_value_is_past_exactly_where_it_is_beyond_the_recipe_s_limit_if_there_is_one():
    for name, limit in limited().items():
        edge = limit.at(LIMITS[name], 0.5)
        assert judged(name, 0.5, edge * (1.01 if limit.kind == "ceiling" else 0.99)).past, name
        assert not judged(name, 0.5, edge).past, name

    for name in OF_EVERYTHING - limited().keys():
        assert not judged(name, 0.5, -1e9).past, name
        assert not judged(name, 0.5, 1e9).past, name


# What is written.

FIELDS = [
    *("damage", "size", "signal", "value_value", "value_low", "value_high", "value_n"),
    *("shift_value", "shift_low", "shift_high", "noticed", "past"),
]


def test_every_row_has_the_same_fields_and_comes_back_from_csv_with_its_numbers(planted: Planted):
    all_found = [finding for kind, size in damages() for finding in found(planted, kind, size)]
    text = io.StringIO()
    writer = csv.DictWriter(text, FIELDS)
    writer.writeheader()
    writer.writerows(finding.row() for finding in all_found)
    rows = list(csv.DictReader(io.StringIO(text.getvalue())))
    assert all(list(finding.row()) == FIELDS for finding in all_found)
    for row, finding in zip(rows, all_found, strict=True):
        assert (row["damage"], float(row["size"]), row["signal"]) == (finding.kind, finding.size, finding.signal)
        assert float(row["value_value"]) == pytest.approx(finding.value.value, rel=1e-5, nan_ok=True)
        assert float(row["shift_low"]) == pytest.approx(finding.shift.low, rel=1e-5, nan_ok=True)
        assert int(row["value_n"]) == finding.value.n
        assert (row["noticed"], row["past"]) == (str(int(finding.noticed)), str(int(finding.past)))


def test_the_table_has_a_line_a_damage_a_column_a_signal_and_marks_what_was_noticed_or_past(planted: Planted):
    every = [finding for kind, size in damages() for finding in found(planted, kind, size)]
    head, rule, *lines = table(every).splitlines()
    assert [cell.strip() for cell in head.strip("|").split("|")] == ["damage", "size", *LIMITED, *COUNTED]
    assert head.count("|") == rule.count("|")
    assert [tuple(cell.strip() for cell in line.strip("|").split("|"))[:2] for line in lines] == [
        (kind, f"{size:g}") for kind, size in damages()
    ]

    calm = judged("tail_perplexity", 4.0, 4.0)
    noticed = replace(judged("tail_perplexity", 4.0, 6.0), size=0.6)
    past = replace(judged("tail_perplexity", 4.0, 60.0), size=0.7)
    cells = [line.split("|")[3].strip() for line in table([calm, noticed, past]).splitlines()[2:]]
    assert cells == ["4.00", "6.00*", "**60.00***"]


def test_the_table_of_smallest_sizes_names_the_least_that_a_signal_notices_and_larger_ones_that_it_misses():
    def at(size: float, kind: str, name: str, noticed: bool) -> Finding:
        return replace(judged(name, 4.0, 4.0), kind=kind, size=size, noticed=noticed)

    every = [
        *(replace(judged(name, 0.5, 0.5), kind="none", size=0.0, noticed=True) for name in OF_ANSWERS),
        *(at(size, "a loop", "tail_perplexity", False) for size in (0.1, 0.5)),
        *(at(size, "a loop", "repetition_share", size > 0.1) for size in (0.1, 0.25, 0.5)),
        *(at(size, "a salad", "tail_perplexity", size in (0.25, 0.75)) for size in (0.1, 0.25, 0.5, 0.75, 1.0)),
    ]
    head, rule, *lines = (
        [cell.strip() for cell in line.strip("|").split("|")] for line in smallest(every).splitlines()
    )
    assert head == ["damage", *(name for name in limited() if name in OF_ANSWERS)]
    assert len(rule) == len(head)
    shown = {line[0]: dict(zip(head[1:], line[1:], strict=True)) for line in lines}
    assert list(shown) == ["a loop", "a salad"]
    assert (shown["a loop"]["tail_perplexity"], shown["a loop"]["repetition_share"]) == ("\N{EN DASH}", "0.25")
    assert shown["a salad"]["tail_perplexity"] == "0.25 (not 0.5, 1)"
    assert [name for name in head[1:] if shown["a salad"][name]] == ["tail_perplexity"]


def test_the_command_writes_both_tables_and_every_finding(tiny_folder: Path, tmp_path: Path):
    few = [f"evaluation.{key}" for key in ("tokens=6", "questions=2", "neutral_texts=2", "resamples=100")]
    done = heal("coherence", f"out={tmp_path / 'out'}", *words(tiny_folder, tmp_path), *few)
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "out" / "coherence.md").read_text()
    assert text in done.stdout
    assert text.count("| damage | ") == 2
    rows = list(csv.DictReader(io.StringIO((tmp_path / "out" / "coherence.csv").read_text())))
    assert list(rows[0]) == FIELDS
    planned = [("none", 0.0), *damages()]
    assert list(dict.fromkeys((row["damage"], float(row["size"])) for row in rows)) == planned
    assert [row["signal"] for row in rows if row["damage"] == "none"] == [
        row["signal"] for row in rows if (row["damage"], row["size"]) == (WEIGHTS, f"{NOISE[0]:g}")
    ]
