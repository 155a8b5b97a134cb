"""Readouts against dense computations, and stages that can be compared item by item."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from heal.accumulator import Accumulator
from heal.evaluation import readouts
from heal.evaluation.evaluate import evaluate
from heal.evaluation.readouts import free_answers, persona, questions
from heal.evaluation.results import Answer, Signal, StageResult, output_rows, summarise
from heal.evaluation.stats import estimate, paired_difference
from heal.evaluation.subject import Subject
from heal.generation.filters import tail_length
from heal.models.language_model import LanguageModel
from tests.students import learn, logits, student
from tests.tiny import sized, vector
from tests.tiny import trait as warm

TRAIT = warm()
NEUTRAL = "Be brief."
NATS = 1e-4  # log-probabilities near ten nats in float32, and the difference of two of them
Model = tuple[LanguageModel, Accumulator]


@pytest.fixture(scope="module")
def healed(tiny_folder: Path) -> Model:
    """A tiny student with one folded round; leave it as it is."""
    return student(tiny_folder, rounds=1)


def subject(model: Model, stage: str = "healed", **changes) -> Subject:
    language_model, accumulator = model
    settings = {
        "stage": stage,
        "language_model": language_model,
        "trait": TRAIT,
        "gates": accumulator.student,
        "base": accumulator.base,
        "system": NEUTRAL,
        "neutral": NEUTRAL,
        "max_repetition": 0.3,
        "questions": 8,
    }
    return Subject(**(settings | changes))


def stages(model: Model) -> dict[str, Subject]:
    """The four stages of a round."""
    accumulator = model[1]
    return {
        "base": subject(model, "base", gates=accumulator.base),
        "prompted": subject(model, "prompted", gates=accumulator.base, system=TRAIT.positive),
        "steered": subject(model, "steered", intervention=vector(model[0], norm=3.0), coefficient=1.5),
        "healed": subject(model, "healed"),
    }


@pytest.fixture(scope="module")
def results(healed: Model) -> dict[str, StageResult]:
    """What each stage measures."""
    return {name: evaluate(each, TRAIT.heldout_prompts, 12) for name, each in stages(healed).items()}


def dense_logprobs(language_model: LanguageModel, prompt: list[int], said: list[int]) -> torch.Tensor:
    with torch.no_grad():
        found = language_model.model(input_ids=torch.tensor([[*prompt, *said]])).logits[0].double()
    return torch.log_softmax(found, -1)[len(prompt) - 1 : -1][range(len(said)), said]


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


def named(signals: list[Signal]) -> dict[str, Signal]:
    return {signal.name: signal for signal in signals}


# The persona log-ratio.


@pytest.mark.parametrize("batch_tokens", [1, 4096])
def test_the_persona_log_ratio_is_that_of_a_dense_computation_under_base(healed: Model, batch_tokens: int):
    model, accumulator = healed
    given = answers(model)
    (signal,) = persona.measure(subject(healed, language_model=sized(model, batch_tokens)), given)
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
    assert signal.values == pytest.approx(expected, abs=NATS)
    assert (signal.name, signal.role, signal.unit) == ("persona_log_ratio", "trait", "nats/token")


def test_swapping_the_personas_turns_the_sign(healed: Model):
    given = answers(healed[0])
    turned = replace(TRAIT, positive=TRAIT.negative, negative=TRAIT.positive)
    (signal,) = persona.measure(subject(healed), given)
    (mirrored,) = persona.measure(subject(healed, trait=turned), given)
    assert mirrored.values == pytest.approx([-value for value in signal.values], abs=NATS)


def test_an_empty_answer_has_no_persona_log_ratio_and_does_not_shift_the_others(healed: Model):
    first, second, third = answers(healed[0])
    (whole,) = persona.measure(subject(healed), [first, second, third])
    (gap,) = persona.measure(subject(healed), [first, replace(second, ids=()), third])
    assert math.isnan(gap.values[1])
    assert [gap.values[0], gap.values[2]] == pytest.approx([whole.values[0], whole.values[2]], abs=NATS)


def test_without_any_answer_of_length_every_persona_log_ratio_is_missing(healed: Model):
    empty = [replace(each, ids=()) for each in answers(healed[0])]
    (signal,) = persona.measure(subject(healed), empty)
    assert len(signal.values) == 3
    assert all(math.isnan(value) for value in signal.values)


def test_the_stage_does_not_decide_how_its_answers_are_scored(healed: Model):
    """Base scores every stage's answers, without steering and with every gate off."""
    given = answers(healed[0])
    for measure in (persona.measure, free_answers.measure):
        found = [measure(each, given) for each in stages(healed).values()]
        assert all(signals == found[0] for signals in found)


# Free answers.


def test_the_tail_perplexity_of_an_answer_is_that_of_a_dense_computation_under_base(healed: Model):
    model, accumulator = healed
    given = answers(model)
    tail = named(free_answers.measure(subject(healed), given))["tail_perplexity"]
    with accumulator.base():
        expected = [
            math.exp(-float(dense_logprobs(model, list(a.prompt_ids), list(a.ids))[-tail_length(len(a.ids)) :].mean()))
            for a in given
        ]
    assert tail.values == pytest.approx(expected, rel=1e-4)


def test_an_answer_loops_when_it_repeats_itself_above_the_filter_s_limit(healed: Model):
    given = answers(healed[0], ("love love love love love", "I will be there at noon with the keys.", "Paris."))
    loops = named(free_answers.measure(subject(healed), given))["repetition_share"]
    assert loops.values == (1.0, 0.0, 0.0)


def test_lengths_endings_and_refusals_are_counted_answer_by_answer(healed: Model):
    given = answers(healed[0], ("Yes, gladly.", "I'm sorry, but I can't help with that.", "No."))
    given = [replace(given[0], ended=True), given[1], replace(given[2], ids=())]
    found = named(free_answers.measure(subject(healed), given))
    assert found["answer_tokens"].values == (12.0, 38.0, 0.0)
    assert found["ended_share"].values == (1.0, 0.0, 0.0)
    assert found["refusal_share"].values == (0.0, 1.0, 0.0)
    counted = [found[name] for name in ("answer_tokens", "ended_share", "refusal_share")]
    assert {signal.role for signal in counted} == {"off_target"}


# Questions.


def test_the_mass_on_the_letters_is_that_of_a_dense_pass_in_the_stage_s_own_state(healed: Model):
    model, _ = healed
    asked = [json.loads(line) for line in questions.QUESTIONS.read_text(encoding="utf-8").splitlines()[:8]]
    ids = [model.chat.tokenizer.convert_tokens_to_ids(letter) for letter in questions.LETTERS]
    for each in stages(healed).values():
        found = named(questions.measure(each, []))
        mass, accuracy = found["p_ans_any"], found["accuracy"]
        for item, question in enumerate(asked):
            prompt = model.chat.ids(
                each.system, questions.question_text(question["question"], question["options"]), questions.PREFILL
            )
            with each.in_force(), torch.no_grad():
                p = torch.softmax(model.model(input_ids=torch.tensor([prompt])).logits[0, -1].double(), -1)[ids]
            assert mass.values[item] == pytest.approx(float(p.sum()), rel=1e-4)
            assert accuracy.values[item] == float(int(p.argmax()) == question["answer"])


def test_a_model_that_knows_the_letter_has_all_the_mass_and_is_right(tiny_folder: Path):
    """A head that says nothing but `B` answers exactly the questions whose answer is B."""
    model = student(tiny_folder)
    language_model = model[0]
    letter = language_model.chat.tokenizer.convert_tokens_to_ids("B")
    head = language_model.model.get_output_embeddings()
    torch.nn.init.zeros_(head.weight)
    head.bias = torch.nn.Parameter(torch.zeros(head.weight.shape[0]), requires_grad=False)
    head.bias[letter] = 50.0
    asked = [json.loads(line) for line in questions.QUESTIONS.read_text(encoding="utf-8").splitlines()[:8]]
    found = named(questions.measure(subject(model), []))
    assert found["p_ans_any"].values == pytest.approx([1.0] * 8)
    assert found["accuracy"].values == tuple(float(each["answer"] == 1) for each in asked)
    assert sum(found["question_informedness"].values) == pytest.approx(0.0)  # who says one letter alone knows nothing


@pytest.mark.parametrize("batch_tokens", [1, 300])
def test_the_batch_decides_nothing_about_the_questions(healed: Model, batch_tokens: int):
    many, few = (
        questions.measure(subject(healed, language_model=sized(healed[0], tokens)), [])
        for tokens in (4096, batch_tokens)
    )
    for a, b in zip(many, few, strict=True):
        assert a.values == pytest.approx(b.values, rel=1e-4)


@pytest.mark.parametrize(("says", "unscorable"), [("B", 0.0), ("x", 1.0)])
def test_a_question_is_unscorable_where_most_mass_is_not_on_its_letters(
    tiny_folder: Path, says: str, unscorable: float
):
    model = student(tiny_folder)
    head = model[0].model.get_output_embeddings()
    torch.nn.init.zeros_(head.weight)
    head.bias = torch.nn.Parameter(torch.zeros(head.weight.shape[0]), requires_grad=False)
    head.bias[model[0].chat.tokenizer.convert_tokens_to_ids(says)] = 50.0
    assert named(questions.measure(subject(model), []))["unscorable_share"].values == (unscorable,) * 8


def test_every_question_has_one_right_option_and_no_letter_is_favoured():
    asked = [json.loads(line) for line in questions.QUESTIONS.read_text(encoding="utf-8").splitlines()]
    assert len({each["question"] for each in asked}) == len(asked) >= 24
    assert all(len(set(each["options"])) == len(questions.LETTERS) for each in asked)
    counts = [sum(each["answer"] == letter for each in asked) for letter in range(len(questions.LETTERS))]
    assert sum(counts) == len(asked)
    assert max(counts) <= 0.4 * len(asked)


# Stages.


def test_every_stage_has_the_same_signals_over_the_same_items(results: dict[str, StageResult]):
    def shape(result: StageResult) -> list[tuple]:
        return [(s.name, s.unit, s.role, s.statistic, s.items, len(s.values)) for s in result.signals]

    for result in results.values():
        assert shape(result) == shape(results["base"])
        assert [answer.prompt for answer in result.answers] == list(TRAIT.heldout_prompts)
        assert [a.prompt_ids for a in result.answers] == [a.prompt_ids for a in results["base"].answers]


def test_signals_follow_the_answers_in_any_order(healed: Model, results: dict[str, StageResult]):
    turned = evaluate(subject(healed), TRAIT.heldout_prompts[::-1], 12)
    assert [a.text for a in turned.answers] == [a.text for a in results["healed"].answers][::-1]
    for signal in turned.signals:
        if signal.items == "answers":
            assert signal.values[::-1] == pytest.approx(results["healed"].signal(signal.name).values, rel=1e-4)


def test_each_signal_has_a_name_of_its_own(results: dict[str, StageResult]):
    names = [signal.name for signal in results["base"].signals]
    assert len(set(names)) == len(names)


def test_the_four_stages_answer_differently(results: dict[str, StageResult]):
    said = {name: tuple(answer.ids for answer in result.answers) for name, result in results.items()}
    assert len(set(said.values())) == 4


def test_the_mass_on_valid_answers_is_a_probability_at_every_stage(results: dict[str, StageResult]):
    for result in results.values():
        assert all(0.0 <= value <= 1.0 for value in result.signal("p_ans_any").values)


def test_answers_are_greedy_and_repeatable(healed: Model, results: dict[str, StageResult]):
    assert evaluate(subject(healed), TRAIT.heldout_prompts, 12) == results["healed"]
    model = healed[0]
    for answer in results["healed"].answers:
        with torch.no_grad():
            dense = model.model(input_ids=torch.tensor([[*answer.prompt_ids, *answer.ids]])).logits[0].argmax(-1)
        assert dense[len(answer.prompt_ids) - 1 : -1].tolist() == list(answer.ids)


def test_the_prompted_stage_reads_the_persona_and_nothing_else_differs(healed: Model):
    model, accumulator = healed
    answered = stages(healed)["prompted"].answer(TRAIT.heldout_prompts, 6)
    for answer in answered:
        prompt = model.chat.ids(TRAIT.positive, answer.prompt)
        with accumulator.base(), torch.no_grad():
            dense = model.model(input_ids=torch.tensor([[*prompt, *answer.ids]])).logits[0].argmax(-1)
        assert dense[len(prompt) - 1 : -1].tolist() == list(answer.ids)
        assert list(answer.prompt_ids) == model.chat.ids(NEUTRAL, answer.prompt)


def test_answers_tell_their_progress(healed: Model):
    told: list[tuple[int, int]] = []
    subject(healed).answer(TRAIT.heldout_prompts, 6, lambda done, total: told.append((done, total)))
    assert told[-1] == (4, 4)
    assert told == sorted(told)


def test_in_force_the_stage_is_steered_and_gated_and_afterwards_all_is_as_before(healed: Model):
    model, accumulator = healed
    before = logits(model)
    with accumulator.base():
        base = logits(model)
    steering = vector(model, norm=3.0)
    with steering.applied(model, 1.5):
        steered = logits(model)
    found = stages(healed)
    with found["steered"].in_force():
        assert torch.equal(logits(model), steered)
    with found["base"].in_force():
        assert torch.equal(logits(model), base)
    with found["healed"].in_force():
        assert torch.equal(logits(model), before)
    assert torch.equal(logits(model), before)
    assert not torch.equal(steered, before)
    assert not torch.equal(base, before)


def test_an_error_in_force_leaves_no_steering_behind(healed: Model):
    model = healed[0]
    before = logits(model)

    def fail() -> None:
        with stages(healed)["steered"].in_force():
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert torch.equal(logits(model), before)


def test_evaluation_leaves_the_student_and_what_trains_as_they_were(tiny_folder: Path):
    model = student(tiny_folder, rounds=1)
    learn(model[1], 1)
    before, trainable = logits(model[0]), list(model[1].trainable())
    for each in stages(model).values():
        evaluate(each, TRAIT.heldout_prompts, 4)
    assert torch.equal(logits(model[0]), before)
    assert list(model[1].trainable()) == trainable


# Readouts and results.


def test_the_readouts_are_the_modules_of_the_package():
    folder = Path(readouts.__file__).parent
    assert readouts.names() == sorted(path.stem for path in folder.glob("*.py") if path.stem != "__init__")


def test_a_readout_put_into_the_package_is_found_by_itself(
    healed: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "zz_length.py").write_text(
        "from heal.evaluation.results import Signal\n"
        "def measure(subject, answers):\n"
        "    return [Signal('length', 'tokens', 'off_target', 'mean', tuple(len(a.ids) for a in answers))]\n"
    )
    monkeypatch.setattr(readouts, "__path__", [*readouts.__path__, str(tmp_path)])
    given = answers(healed[0])
    assert readouts.measure_all(subject(healed), given)[-1].values == tuple(len(each.ids) for each in given)


def test_a_stage_comes_back_from_its_file_as_it_was(results: dict[str, StageResult]):
    for result in results.values():
        assert StageResult.from_json(json.loads(json.dumps(result.to_json()))) == result


def test_a_value_that_is_not_a_number_survives_the_file():
    signal = Signal("x", "share", "coherence", "mean", (0.1, math.nan, math.inf))
    back = StageResult.from_json(json.loads(json.dumps(StageResult("base", (), (signal,)).to_json())))
    assert repr(back) == repr(StageResult("base", (), (signal,)))


def test_a_summary_has_each_signal_and_its_paired_difference_to_base(results: dict[str, StageResult]):
    summary = summarise(results["healed"], results["base"], 200, 7)
    for signal in results["healed"].signals:
        base = results["base"].signal(signal.name)
        assert summary.values[signal.name] == estimate(signal.values, signal.statistic, 200, 7)
        assert summary.deltas[signal.name] == paired_difference(signal.values, base.values, signal.statistic, 200, 7)
        shown = summary.to_json()[signal.name]
        assert (shown["value"], shown["delta"]["n"]) == (
            summary.values[signal.name].value,
            summary.deltas[signal.name].n,
        )
        assert (shown["role"], shown["unit"]) == (signal.role, signal.unit)


def test_base_does_not_differ_from_itself(results: dict[str, StageResult]):
    for delta in summarise(results["base"], results["base"], 200, 7).deltas.values():
        assert (delta.value, delta.low, delta.high) == (0.0, 0.0, 0.0)


def test_output_rows_hold_each_answer_with_its_own_values(results: dict[str, StageResult]):
    result = results["steered"]
    rows = output_rows(result)
    assert [row["text"] for row in rows] == [answer.text for answer in result.answers]
    assert {row["stage"] for row in rows} == {"steered"}
    for index, row in enumerate(rows):
        assert row["persona_log_ratio"] == result.signal("persona_log_ratio").values[index]
        assert "accuracy" not in row
