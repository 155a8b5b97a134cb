"""Readouts against dense computations, and stages that can be compared item by item."""

import json
import math
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import pytest
import torch

from heal import choices
from heal.accumulator import Accumulator
from heal.evaluation.asking.way import Asking
from heal.evaluation.evaluate import evaluate, measure_all
from heal.evaluation.judging.judge import Judge
from heal.evaluation.judging.server import Server
from heal.evaluation.neutral import NeutralTexts
from heal.evaluation.readouts import free_answers, likelihood, persona, questions
from heal.evaluation.readouts.thoughts import UNCLOSED
from heal.evaluation.results import Answer, StageResult, headline, output_rows, summarise
from heal.evaluation.signal import MASS, READOUTS, Measured, limited, signals
from heal.evaluation.stats import Estimate, estimate, paired_difference
from heal.evaluation.subject import Subject
from heal.evaluation.vignettes import read_vignettes
from heal.generation.filters import tail_length
from heal.models.language_model import LanguageModel
from heal.records import json_bytes, read_record, record_bytes
from tests.judging import MODEL, Served, serving
from tests.stages import NEUTRAL, setup
from tests.students import learn, logits, student
from tests.tiny import lean, sized, vector
from tests.tiny import trait as warm

TRAIT = warm()
NATS = 1e-4  # log-probabilities near ten nats in float32, and the difference of two of them
Model = tuple[LanguageModel, Accumulator]


@pytest.fixture(scope="module")
def healed(tiny_folder: Path) -> Model:
    """A tiny student with one folded round; leave it as it is."""
    return student(tiny_folder, rounds=1)


def subject(model: Model, **changes) -> Subject:
    """The healed stage; `changes` are made to the setup."""
    return Subject(setup(**({"language_model": model[0], "base": model[1].base} | changes)), "healed", model[1].student)


def stages(model: Model, **changes) -> dict[str, Subject]:
    """The four stages of a round."""
    healed, accumulator = subject(model, **changes), model[1]
    return {
        "base": replace(healed, stage="base", gates=accumulator.base),
        "prompted": replace(healed, stage="prompted", gates=accumulator.base, persona=TRAIT.positive),
        "steered": replace(healed, stage="steered", intervention=vector(model[0], norm=3.0), coefficient=1.5),
        "healed": healed,
    }


@pytest.fixture(scope="module")
def results(healed: Model) -> dict[str, StageResult]:
    """What each stage measures."""
    return {name: evaluate(stage) for name, stage in stages(healed).items()}


def dense_logprobs(language_model: LanguageModel, prompt: list[int], said: list[int]) -> torch.Tensor:
    with torch.no_grad():
        logits_NV = language_model.model(input_ids=torch.tensor([[*prompt, *said]])).logits[0].double()
    return torch.log_softmax(logits_NV, -1)[len(prompt) - 1 : -1][range(len(said)), said]


def answers(language_model: LanguageModel, texts: tuple[str, ...] = ("Yes, of course.", "no", "?!")) -> list[Answer]:
    encode = language_model.chat.tokenizer
    return [
        Answer(
            prompt,
            tuple(language_model.chat.ids(NEUTRAL, prompt)),
            tuple(encode(text, add_special_tokens=False)["input_ids"]),
            text,
            False,
        )
        for prompt, text in zip(TRAIT.heldout_prompts, texts, strict=False)
    ]


def named(measured: list[Measured]) -> dict[str, Measured]:
    return {signal.name: signal for signal in measured}


# The persona log-ratio.


def test_the_persona_log_ratio_is_that_of_a_dense_computation_under_base_and_turns_with_the_personas(healed: Model):
    model, accumulator = healed
    given = answers(model)
    with accumulator.base():
        expected = [
            float(
                (
                    dense_logprobs(model, model.chat.ids(TRAIT.positive, each.prompt), list(each.ids))
                    - dense_logprobs(model, model.chat.ids(TRAIT.negative, each.prompt), list(each.ids))
                ).mean()
            )
            for each in given
        ]
    for tokens in (1, 4096):
        (signal,) = persona.measure(subject(healed, language_model=sized(model, tokens)), given)
        assert signal.values == pytest.approx(expected, abs=NATS), tokens

    turned = replace(TRAIT, positive=TRAIT.negative, negative=TRAIT.positive)
    (mirrored,) = persona.measure(subject(healed, trait=turned), given)
    assert mirrored.values == pytest.approx([-value for value in signal.values], abs=NATS)


def test_an_empty_answer_has_no_persona_log_ratio_and_does_not_shift_the_others(healed: Model):
    first, second, third = answers(healed[0])
    (whole,) = persona.measure(subject(healed), [first, second, third])
    (gap,) = persona.measure(subject(healed), [first, replace(second, ids=()), third])
    assert math.isnan(gap.values[1])
    assert [gap.values[0], gap.values[2]] == pytest.approx([whole.values[0], whole.values[2]], abs=NATS)

    (signal,) = persona.measure(subject(healed), [replace(each, ids=()) for each in (first, second, third)])
    assert len(signal.values) == 3
    assert all(math.isnan(value) for value in signal.values)


def test_the_stage_does_not_decide_how_its_answers_are_scored(healed: Model):
    """Base scores every stage's answers, without steering and with every gate off."""
    given = answers(healed[0])
    for measure in (persona.measure, likelihood.measure, free_answers.measure):
        measured = [measure(stage, given) for stage in stages(healed).values()]
        assert all(same == measured[0] for same in measured)


# Free answers.


def test_the_tail_perplexity_of_an_answer_is_that_of_a_dense_computation_under_base(healed: Model):
    model, accumulator = healed
    given = answers(model)
    tail = named(likelihood.measure(subject(healed), given))["tail_perplexity"]
    with accumulator.base():
        expected = [
            math.exp(-float(dense_logprobs(model, list(a.prompt_ids), list(a.ids))[-tail_length(len(a.ids)) :].mean()))
            for a in given
        ]
    assert tail.values == pytest.approx(expected, rel=1e-4)


def test_loops_lengths_endings_and_refusals_are_counted_answer_by_answer(healed: Model):
    given = answers(healed[0], ("love love love love love", "I will be there at noon with the keys.", "Paris."))
    loops = named(free_answers.measure(subject(healed), given))["repetition_share"]
    assert loops.values == (1.0, 0.0, 0.0)

    given = answers(healed[0], ("Yes, gladly.", "I'm sorry, but I can't help with that.", "No."))
    given = [replace(given[0], ended=True), given[1], replace(given[2], ids=())]
    found = named(free_answers.measure(subject(healed), given))
    assert found["answer_tokens"].values == (12.0, 38.0, 0.0)
    assert found["ended_share"].values == (1.0, 0.0, 0.0)
    assert found["refusal_share"].values == (0.0, 1.0, 0.0)


# Questions.


def by_id(count: int) -> list[dict[str, Any]]:
    """The first questions in the order of their ids: those of a run that chose no way of asking."""
    rows = [json.loads(line) for line in questions.QUESTIONS.read_text(encoding="utf-8").splitlines()]
    return sorted(rows, key=lambda row: row["id"])[:count]


def lettered(question: dict[str, Any]) -> str:
    """A question with its options, one a line."""
    options = zip("ABCD", question["options"], strict=True)
    return "\n".join([question["question"], *(f"({letter}) {option}" for letter, option in options)])


def test_the_mass_on_the_letters_is_that_of_a_dense_pass_in_the_stage_s_own_state(healed: Model):
    model, _ = healed
    asked = by_id(8)
    ids = [model.chat.tokenizer.convert_tokens_to_ids(letter) for letter in "ABCD"]
    for each in stages(healed).values():
        found = named(questions.measure(each, []))
        mass, accuracy = found["p_ans_any"], found["accuracy"]
        for item, question in enumerate(asked):
            prompt = model.chat.ids(each.system, lettered(question), "Answer: (")
            with each.in_force(), torch.no_grad():
                p = torch.softmax(model.model(input_ids=torch.tensor([prompt])).logits[0, -1].double(), -1)[ids]
            assert mass.values[item] == pytest.approx(float(p.sum()), rel=1e-4)
            assert accuracy.values[item] == float(int(p.argmax()) == question["answer"])


def test_what_is_right_is_read_off_the_chosen_way_and_the_mass_off_the_letters_in_one_order(healed: Model):
    plain, items = subject(healed), questions.items_of(questions.QUESTIONS)[:8]
    ways = questions.choice(plain.setup).ways
    mass = ways["letters, 1 order"].ask(plain, items).mass_N
    for name, way in ways.items():
        found = named(questions.measure(subject(healed, asking={questions.CHOICE: Asking(name)}), []))
        right = zip(way.ask(plain, items).chosen(), [item.right for item in items], strict=True)
        assert found["accuracy"].values == tuple(float(chosen == answer) for chosen, answer in right), name
        assert found["p_ans_any"].values == pytest.approx(mass.tolist(), rel=1e-4), name


def test_a_model_that_says_one_letter_alone_is_right_where_it_is_and_one_that_says_none_is_unscorable(
    tiny_folder: Path,
):
    model, found = student(tiny_folder), {}
    for says, unscorable in (("B", 0.0), ("x", 1.0)):
        lean(model[0], says, 50.0, deaf=True)
        found[says] = named(questions.measure(subject(model), []))
        assert found[says]["unscorable_share"].values == (unscorable,) * 8
    assert found["B"]["p_ans_any"].values == pytest.approx([1.0] * 8)
    assert found["B"]["accuracy"].values == tuple(float(each["answer"] == 1) for each in by_id(8))
    assert sum(found["B"]["question_informedness"].values) == pytest.approx(0.0)  # one letter alone knows nothing


def test_the_batch_decides_nothing_about_the_questions(healed: Model):
    many, *fewer = (
        questions.measure(subject(healed, language_model=sized(healed[0], tokens)), []) for tokens in (4096, 1, 300)
    )
    for few in fewer:
        for a, b in zip(many, few, strict=True):
            assert a.values == pytest.approx(b.values, rel=1e-4)


# Stages.


def test_the_four_stages_answer_differently_and_have_the_same_signals_over_the_same_items(
    results: dict[str, StageResult],
):
    def shape(result: StageResult) -> list[tuple]:
        return [(s.name, s.unit, s.role, s.statistic, s.items, len(s.values)) for s in result.signals]

    for result in results.values():
        assert shape(result) == shape(results["base"])
        assert [answer.prompt for answer in result.answers] == list(TRAIT.heldout_prompts)
        assert [a.prompt_ids for a in result.answers] == [a.prompt_ids for a in results["base"].answers]
        assert all(0.0 <= value <= 1.0 for value in result.signal("p_ans_any").values)
    said = {name: tuple(answer.ids for answer in result.answers) for name, result in results.items()}
    assert len(set(said.values())) == 4


def test_answers_are_greedy_and_repeatable_and_signals_follow_them_in_any_order(
    healed: Model, results: dict[str, StageResult]
):
    assert evaluate(subject(healed)) == results["healed"]
    model = healed[0]
    for answer in results["healed"].answers:
        with torch.no_grad():
            dense = model.model(input_ids=torch.tensor([[*answer.prompt_ids, *answer.ids]])).logits[0].argmax(-1)
        assert dense[len(answer.prompt_ids) - 1 : -1].tolist() == list(answer.ids)

    turned = evaluate(subject(healed, prompts=TRAIT.heldout_prompts[::-1]))
    assert [a.text for a in turned.answers] == [a.text for a in results["healed"].answers][::-1]
    for signal in turned.signals:
        if signal.items == "answers":
            assert signal.values[::-1] == pytest.approx(results["healed"].signal(signal.name).values, rel=1e-4)


def test_the_prompted_stage_reads_the_persona_and_nothing_else_differs(healed: Model):
    model, accumulator = healed
    answered = stages(healed, tokens=6)["prompted"].answer()
    for answer in answered:
        prompt = model.chat.ids(TRAIT.positive, answer.prompt)
        with accumulator.base(), torch.no_grad():
            dense = model.model(input_ids=torch.tensor([[*prompt, *answer.ids]])).logits[0].argmax(-1)
        assert dense[len(prompt) - 1 : -1].tolist() == list(answer.ids)
        assert list(answer.prompt_ids) == model.chat.ids(NEUTRAL, answer.prompt)


def test_answers_tell_their_progress(healed: Model):
    told: list[tuple[int, int]] = []
    subject(healed, tokens=6).answer(lambda done, total: told.append((done, total)))
    assert told[-1] == (4, 4)
    assert told == sorted(told)


def test_in_force_the_stage_is_steered_and_gated_and_afterwards_or_after_an_error_all_is_as_before(healed: Model):
    model, accumulator = healed
    before = logits(model)
    with accumulator.base():
        base = logits(model)
    steering = vector(model, norm=3.0)
    with steering.applied(model, 1.5):
        steered = logits(model)
    for stage, expected in (("steered", steered), ("base", base), ("healed", before)):
        with stages(healed)[stage].in_force():
            assert torch.equal(logits(model), expected), stage
    assert torch.equal(logits(model), before)
    assert not torch.equal(steered, before)
    assert not torch.equal(base, before)

    with pytest.raises(KeyboardInterrupt), stages(healed)["steered"].in_force():
        raise KeyboardInterrupt
    assert torch.equal(logits(model), before)


def test_evaluation_leaves_the_student_and_what_trains_as_they_were(tiny_folder: Path):
    model = student(tiny_folder, rounds=1)
    learn(model[1], 1)
    before, trainable = logits(model[0]), list(model[1].trainable())
    for stage in stages(model, tokens=4).values():
        evaluate(stage)
    assert torch.equal(logits(model[0]), before)
    assert list(model[1].trainable()) == trainable


# Readouts and results.


def test_every_readout_measures_exactly_what_it_describes_or_is_caught(healed: Model, monkeypatch: pytest.MonkeyPatch):
    model, accumulator = replace(healed[0], thinking=8), healed[1]  # some are measured only where the model may think
    texts = NeutralTexts(model, NEUTRAL, 2)
    given = answers(model)
    for name, described in choices.load_all(READOUTS, "SIGNALS").items():
        with serving(Served(model)) as served:
            judge = Judge(Server(served.url, MODEL), warm(), 99)
            scenes = read_vignettes("embedded", 7)
            about = subject((model, accumulator), vignettes=scenes, neutral_texts=texts, judge=judge)
            measured = choices.load(READOUTS, name, "measure")(about, given)
        assert sorted(each.name for each in measured) == sorted(each.name for each in described), name
        for values in measured:
            assert values == signals()[values.name].measured(values.values), "a description of its own"
            items = {"answers": len(given), "questions": 8, "texts": 2, "vignettes": 7}[values.items]
            assert len(values.values) == items, values.name

    monkeypatch.setattr(free_answers, "SIGNALS", free_answers.SIGNALS[1:])
    with pytest.raises(AssertionError, match="free_answers: measures other than it describes"):
        measure_all(subject(healed), answers(healed[0]))


def test_a_stage_comes_back_from_its_file_as_it_was(results: dict[str, StageResult], tmp_path: Path):
    odd = StageResult("odd", (), (signals()["accuracy"].measured([0.1, math.nan, math.inf]),))
    for result in (*results.values(), odd):
        (tmp_path / "stage.json").write_bytes(record_bytes(result))
        assert repr(read_record(StageResult, tmp_path / "stage.json")) == repr(result)


def test_a_stage_of_another_version_is_read_and_compared_by_what_its_file_says(tmp_path: Path):
    mass = signals()[MASS]
    base = StageResult("base", (), (mass.measured([0.9] * 16 + [0.1] * 16),))
    later = StageResult("healed", (), (mass.measured([0.8] * 16),))
    for one, other, shift in ((later, base, -0.1), (base, later, 0.1)):
        delta = summarise(one, other, 100, 0)[MASS].delta
        assert (delta.n, delta.value) == (16, pytest.approx(shift))

    # A file explains itself: unit, role and statistic stand beside the values; fields that are new are ignored.
    row = {
        "name": "gone",
        "unit": "nats",
        "role": "coherence",
        "statistic": "median",
        "values": [1, 2, 9],
        "items": "texts",
        "new": 1,
    }
    (tmp_path / "old.json").write_bytes(json_bytes({"stage": "base", "answers": [], "signals": [row]}))
    stage = read_record(StageResult, tmp_path / "old.json")
    figures = summarise(stage, stage, 100, 0)["gone"]
    assert (figures.value, figures.role, figures.unit) == (2.0, "coherence", "nats")


def test_a_summary_has_each_signal_that_both_have_and_its_paired_difference_to_base(results: dict[str, StageResult]):
    summary = summarise(results["healed"], results["base"], 200, 7)
    for signal in results["healed"].signals:
        base, figures = results["base"].signal(signal.name), summary[signal.name]
        value = Estimate(figures.value, figures.low, figures.high, figures.n)
        assert value == estimate(signal.values, signal.statistic, 200, 7)
        assert figures.delta == paired_difference(signal.values, base.values, signal.statistic, 200, 7)
        assert (figures.role, figures.unit) == (signal.role, signal.unit)

    whole = results["healed"]
    part = replace(whole, signals=tuple(signal for signal in whole.signals if signal.name != "accuracy"))
    names = {signal.name for signal in part.signals}
    assert summarise(whole, part, 100, 0).keys() == summarise(part, whole, 100, 0).keys() == names
    assert "accuracy" not in headline(part)

    for figures in summarise(results["base"], results["base"], 200, 7).values():
        assert (figures.delta.value, figures.delta.low, figures.delta.high) == (0.0, 0.0, 0.0)


def test_output_rows_hold_each_answer_with_its_own_values(results: dict[str, StageResult]):
    result = results["steered"]
    rows = output_rows(result)
    assert [row["text"] for row in rows] == [answer.text for answer in result.answers]
    assert {row["stage"] for row in rows} == {"steered"}
    for index, row in enumerate(rows):
        assert row["persona_log_ratio"] == result.signal("persona_log_ratio").values[index]
        assert "accuracy" not in row


def test_a_stage_s_line_shows_the_trait_and_every_signal_with_a_limit(results: dict[str, StageResult]):
    line = headline(results["healed"])
    tails = [value for value in results["healed"].signal("tail_perplexity").values if not math.isnan(value)]
    assert f"tail_perplexity {median(tails):.2f}" in line
    assert [part.split()[0] for part in line.split(", ")] == [
        "persona_log_ratio",
        *(name for name in limited() if name != UNCLOSED.name),  # the model is not to think
    ]
