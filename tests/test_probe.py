"""The probe: one slot for its answers whatever the tokenizer merges, in the format that base knows best."""

import json
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import heal
from heal.evaluation import probe as probe_module
from heal.evaluation.probe import FORMATS, INTERRUPTION, QUESTION, Probe, ProbeFormat, choose_probe, interruption, slot
from heal.evaluation.signal import MIN_MASS
from heal.models.chat import Chat
from heal.models.language_model import LanguageModel
from heal.progress import silent
from heal.records import read_record, record_bytes
from heal.steps.baseline import ChooseProbe
from tests.cases import case
from tests.students import student
from tests.tiny import CHATML, VOCABULARY, load, prompts, tokenizer

# Pairs that end a prefill and begin an answer, as real tokenizers merge them.
MERGES = [("Ġ", "t"), ("Ġ", "f"), ("Ġ", "Y"), ("Ġ", "N"), ("(", "A"), ("(", "B"), ("(", "C"), ("(", "D")]
TOKENIZERS = {"bytes": (), "merging": MERGES}
JSON, YES_NO, LETTERS = FORMATS
DATA = Path(heal.__file__).parent / "data"


@pytest.fixture
def models(tiny: LanguageModel) -> dict[str, LanguageModel]:
    """A tiny model whose tokenizer knows bytes alone, and one whose tokenizer merges."""
    return {name: replace(tiny, chat=Chat(tokenizer(merges=merges))) for name, merges in TOKENIZERS.items()}


@pytest.fixture
def merging(tiny: LanguageModel) -> LanguageModel:
    return replace(tiny, chat=Chat(tokenizer(merges=MERGES)))


def written(language_model: LanguageModel, ids: Sequence[int]) -> str:
    """The text of ids, special tokens included."""
    return str(language_model.chat.tokenizer.decode(list(ids)))


def asked(language_model: LanguageModel, form: ProbeFormat) -> str:
    """What a format puts after a text, up to its answer."""
    hinted = f"{QUESTION}\n{form.hint}"
    return (language_model.chat.next_turn(hinted) if form.new_turn else INTERRUPTION) + form.prefill


# The slot.


def test_a_text_with_any_answer_begins_with_the_ids_up_to_the_slot_and_that_answers_own_token(
    models: dict[str, LanguageModel],
):
    for name, model in models.items():
        with case(name):
            for form in FORMATS:
                splice, answers = interruption(model, form)
                assert len(set(answers)) == len(form.options)
                for option, answer in zip(form.options, answers, strict=True):
                    whole = model.chat.plain_ids(asked(model, form) + option)
                    assert whole[: len(splice) + 1] == [*splice, answer], (form.name, option)


def test_bytes_part_right_after_the_prefill_and_what_merges_with_an_answer_is_cut_before_it(
    tiny: LanguageModel, merging: LanguageModel
):
    for each in FORMATS:
        splice, answers = interruption(tiny, each)
        assert written(tiny, splice) == asked(tiny, each)
        assert [written(tiny, [answer]) for answer in answers] == [option[0] for option in each.options]

    for form, begins in ((JSON, [" t", " f"]), (YES_NO, [" Y", " N"]), (LETTERS, ["(A", "(B", "(C", "(D"])):
        splice, answers = interruption(merging, form)
        assert written(merging, splice) == asked(merging, form)[:-1], form.name
        assert [written(merging, [answer]) for answer in answers] == begins


def test_answers_are_told_apart_where_they_part_and_those_that_one_slot_cannot_tell_apart_are_refused(
    tiny: LanguageModel,
):
    splice, answers = slot(tiny, "Say: ", ("yes", "yet"))
    assert written(tiny, splice) == "Say: ye"
    assert [written(tiny, [answer]) for answer in answers] == ["s", "t"]

    for options in (("Yes", "Yes, surely"), ("Yes", "Yes"), ("Yes", "Yep", "No"), ("", "No")):
        with pytest.raises(ValueError, match="no token of its own for each of"):
            slot(tiny, "Say: ", options)


# The interruption.


def test_a_probe_in_a_turn_of_its_own_is_the_template_s_turn_and_any_other_is_said_by_the_model(tiny: LanguageModel):
    splice, _ = interruption(tiny, LETTERS)
    assert written(tiny, splice) == (
        f"<|im_end|>\n<|im_start|>user\n{QUESTION}\n{LETTERS.hint}<|im_end|>\n<|im_start|>assistant\n{LETTERS.prefill}"
    )

    other = CHATML.replace("<|im_end|>\n", "<|im_end|>")
    spoken = replace(tiny, chat=Chat(tokenizer(other)))
    splice, _ = interruption(spoken, LETTERS)
    assert written(spoken, splice).startswith("<|im_end|><|im_start|>user\n")

    for form in (JSON, YES_NO):
        splice, _ = interruption(tiny, form)
        assert not {0, 1, 2} & set(splice)
        assert written(tiny, splice) == INTERRUPTION + form.prefill


def test_a_row_with_an_answer_and_the_probe_is_the_conversation_that_the_template_renders(tiny: LanguageModel):
    splice, _ = interruption(tiny, LETTERS)
    said = "Cats sleep a l"
    conversation = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "What do cats do?"},
        {"role": "assistant", "content": said},
        {"role": "user", "content": f"{QUESTION}\n{LETTERS.hint}"},
    ]
    whole = tiny.chat.tokenizer.apply_chat_template(conversation, tokenize=False, add_generation_prompt=True)
    row = [*tiny.chat.ids("Be brief.", "What do cats do?"), *tiny.chat.plain_ids(said), *splice]
    assert row == tiny.chat.plain_ids(whole + LETTERS.prefill)


# The choice.


def favour(language_model: LanguageModel, tokens: Sequence[int]) -> None:
    """Makes a model say nothing but `tokens`, each as often."""
    head = language_model.model.get_output_embeddings()
    torch.nn.init.zeros_(head.weight)
    head.bias = torch.nn.Parameter(torch.zeros(head.weight.shape[0]), requires_grad=False)
    head.bias[list(tokens)] = 50.0


def test_a_model_that_says_the_answers_of_one_format_is_asked_in_it(tiny_folder: Path):
    model = load(tiny_folder)
    for form in FORMATS:
        favour(model, interruption(model, form)[1])
        found = choose_probe(model, prompts(model), nullcontext)
        assert found.format == form
        assert found.masses == pytest.approx({other.name: float(other is form) for other in FORMATS}, abs=1e-4)
        assert found.mass == pytest.approx(1.0)


def test_a_mass_is_the_mean_of_that_of_dense_passes(models: dict[str, LanguageModel]):
    for name, model in models.items():
        with case(name):
            texts = prompts(model)
            found = choose_probe(model, texts, nullcontext)
            for each in FORMATS:
                splice, answers = interruption(model, each)
                dense = []
                for row in texts:
                    with torch.no_grad():
                        last = model.model(input_ids=torch.tensor([[*row, *splice]])).logits[0, -1].double()
                    dense.append(float(torch.softmax(last, -1)[answers].sum()))
                assert found.masses[each.name] == pytest.approx(sum(dense) / len(dense), rel=1e-4)


def answering(model: LanguageModel, masses: Sequence[float], monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the model put so much on the answers at the slot of each format."""
    slots = [interruption(model, each) for each in FORMATS]

    def logits(language_model: LanguageModel, rows: Sequence[Sequence[int]]) -> torch.Tensor:
        found = torch.full((len(rows), VOCABULARY), 1e-9)
        for place, row in enumerate(rows):
            ((answers, mass),) = [
                (answers, mass)
                for (splice, answers), mass in zip(slots, masses, strict=True)
                if list(row[-len(splice) :]) == splice
            ]
            found[place, answers] = mass / len(answers)
            found[place, VOCABULARY - 1] = 1 - mass
        return found.log()

    monkeypatch.setattr(probe_module, "next_token_logits", logits)


ENOUGH, LITTLE = MIN_MASS + 0.001, MIN_MASS - 0.001


def test_the_first_format_with_enough_mass_is_taken_and_else_the_best(
    models: dict[str, LanguageModel], monkeypatch: pytest.MonkeyPatch
):
    for name, model in models.items():
        with case(name):
            for masses, chosen in (
                ((0.95, 0.99, 0.99), JSON),
                ((ENOUGH, 0.2, 0.99), JSON),
                ((LITTLE, ENOUGH, 0.99), YES_NO),
                ((0.02, 0.5, 0.98), LETTERS),
                ((0.5, LITTLE, 0.6), YES_NO),
                ((LITTLE, 0.5, 0.6), JSON),
                ((0.1, 0.2, LITTLE), LETTERS),
            ):
                answering(model, masses, monkeypatch)
                found = choose_probe(model, prompts(model), nullcontext)
                assert found.format == chosen, masses
                assert list(found.masses) == [
                    form.name for form in FORMATS
                ]  # all of them, also those after the chosen one
                assert list(found.masses.values()) == pytest.approx(masses, abs=1e-5)
                assert found.mass == found.masses[chosen.name]


def test_it_is_base_that_is_asked(tiny_folder: Path):
    model, accumulator = student(tiny_folder, rounds=1)
    texts = prompts(model)
    found = choose_probe(model, texts, accumulator.base)
    assert found.masses == pytest.approx(choose_probe(load(tiny_folder), texts, nullcontext).masses, rel=1e-5)
    assert found.masses != pytest.approx(choose_probe(model, texts, accumulator.student).masses, rel=1e-2)


def test_it_is_chosen_on_texts_that_no_evaluation_uses(tiny: LanguageModel):
    lines = (DATA / "neutral_apart.jsonl").read_text(encoding="utf-8").splitlines()
    texts = [
        [*tiny.chat.ids("Be brief.", line["prompt"]), *tiny.chat.plain_ids(line["text"])[:32]]
        for line in map(json.loads, lines)
    ]
    found = ChooseProbe(tiny, nullcontext, "Be brief.").compute(silent).probe
    assert found.masses == pytest.approx(choose_probe(tiny, texts, nullcontext).masses, rel=1e-4)


def test_a_format_without_a_slot_is_left_out_and_a_tokenizer_without_any_is_refused(tiny: LanguageModel):
    # A tokenizer that knows no capital A to D cannot be asked for letters.
    poor = replace(tiny, chat=Chat(tokenizer(without="ABCD")))
    with pytest.raises(ValueError, match="no token of its own"):
        interruption(poor, LETTERS)
    assert list(choose_probe(poor, prompts(poor), nullcontext).masses) == ["json", "yes/no"]

    letters = "".join(set(map(chr, range(33, 127))) | {"Ġ", "Ċ"})
    poor = replace(tiny, chat=Chat(tokenizer(without=letters)))
    with pytest.raises(ValueError, match="no answer slot in any format"):
        choose_probe(poor, prompts(tiny), nullcontext)


def test_a_probe_comes_back_from_its_file_and_formats_are_told_apart_by_name_and_by_what_they_ask(
    tmp_path: Path, tiny: LanguageModel
):
    for form in FORMATS:
        probe = Probe(form, {"json": 0.0125, "yes/no": 0.5, "letters": 0.975})
        (tmp_path / "probe.json").write_bytes(record_bytes(probe))
        assert read_record(Probe, tmp_path / "probe.json") == probe

    assert len({form.name for form in FORMATS}) == len(FORMATS)
    assert len({asked(tiny, form) for form in FORMATS}) == len(FORMATS)
    assert all(form.yes and form.no and not set(form.yes) & set(form.no) for form in FORMATS)
