"""Planted damage: what is spoilt, what is left alone, and that weights come back bit for bit."""

import json
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from heal.accumulator import linear_names
from heal.errors import UserError
from heal.evaluation.results import Answer
from heal.models.language_model import LanguageModel
from heal.studies.planted_damage.damage import (
    KINDS,
    LANGUAGES,
    Kind,
    cut_off,
    damaged,
    exchanged,
    long_loop,
    noisy_weights,
    one_answer,
    token_loop,
    word_salad,
    wrong_language,
)
from tests.students import learn, logits, student
from tests.tiny import ARCHITECTURES, load, load_architecture

IDS = tuple(range(100, 148))
TEXT = "The ferry leaves at noon,\nand the  next one goes at three\tfrom the same pier."
OTHER = "Die Fähre legt um zwölf Uhr ab und die nächste fährt dann um drei vom selben Kai."
ON_IDS: dict[Kind, Callable] = {"token loop": token_loop, "long loop": long_loop, "cut off": cut_off}
ON_WORDS: tuple[Kind, ...] = ("word salad", "wrong language")
OF_WHOLE: dict[Kind, Callable] = {"exchanged": exchanged, "one answer": one_answer}
TO_AN_ANSWER: tuple[Kind, ...] = (*ON_IDS, *ON_WORDS)
SIZES = [0.1, 0.25, 0.5, 0.75, 1.0]
SAID = [
    ("The ferry leaves at noon, and the next one goes at three from the same pier.", True),
    ("Put the onions in first.\n\nThen add the beans and a little stock", False),
    ("Yes, the café opens at nine. " * 20, True),
    ("Three.", True),
]


def on_words(kind: Kind, size: float) -> str:
    return word_salad(TEXT, size, 0) if kind == "word salad" else wrong_language(TEXT, size, OTHER)


def spoil(kind: Kind, size: float) -> object:
    """Some damage of this kind, by its own function."""
    if kind in OF_WHOLE:
        return OF_WHOLE[kind](many(4), size, 0)
    return ON_IDS[kind](IDS, size) if kind in ON_IDS else on_words(kind, size)


def answers(language_model: LanguageModel) -> list[Answer]:
    end = min(language_model.end_ids)
    return [
        Answer("Say it.", (1, 2, 3), (*language_model.chat.plain_ids(text), *[end] * ended), text.strip(), ended)
        for text, ended in SAID
    ]


def many(count: int) -> list[Answer]:
    """Answers that are all different, to as many prompts."""
    return [
        Answer(f"Say {index}.", (1, index), (7, index, 8), f"said {index}", bool(index % 2)) for index in range(count)
    ]


def said(given: Sequence[Answer]) -> list[tuple[tuple[int, ...], str, bool]]:
    return [(answer.ids, answer.text, answer.ended) for answer in given]


def asked(given: Sequence[Answer]) -> list[tuple[str, tuple[int, ...]]]:
    return [(answer.prompt, answer.prompt_ids) for answer in given]


def body(language_model: LanguageModel, answer: Answer) -> tuple[int, ...]:
    return tuple(token for token in answer.ids if token not in language_model.end_ids)


def blocks(language_model: LanguageModel) -> dict[str, Tensor]:
    names = set(linear_names(language_model, list(range(len(language_model.blocks)))))
    return {
        name: module.weight.detach().clone()
        for name, module in language_model.model.named_modules()
        if name in names and isinstance(module, nn.Linear)
    }


def state(language_model: LanguageModel) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in language_model.model.state_dict().items()}


def same_bits(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        torch.equal(one[name].view(torch.uint8), other[name].view(torch.uint8)) for name in one
    )


def changed(before: dict[str, Tensor], language_model: LanguageModel) -> set[str]:
    return {name for name, tensor in state(language_model).items() if not torch.equal(tensor, before[name])}


def test_damage_of_size_0_leaves_everything_as_it_was_and_a_size_that_is_no_fraction_is_refused(tiny: LanguageModel):
    assert {*TO_AN_ANSWER, *OF_WHOLE} == set(KINDS)
    for kind in KINDS:
        assert spoil(kind, 0.0) == (IDS if kind in ON_IDS else TEXT if kind in ON_WORDS else many(4)), kind
        assert damaged(tiny, answers(tiny), kind, 0.0, 0) == answers(tiny), kind

    for kind in KINDS:
        for size in (-0.1, 1.1, float("nan")):
            with pytest.raises(ValueError, match=r"a fraction in \[0, 1\]"):
                spoil(kind, size)


def test_a_loop_repeats_the_tokens_just_before_it_or_the_beginning_that_there_is():
    for loop, period in ((token_loop, 3), (long_loop, 12)):
        for size in SIZES:
            done = loop(IDS, size)
            kept = max(len(IDS) - int(size * len(IDS) + 0.5), period)
            assert len(done) == len(IDS)
            assert done[:kept] == IDS[:kept]
            assert all(done[index] == done[index - period] for index in range(kept, len(IDS))), (period, size)
            assert done[kept:] != IDS[kept:]

    for loop, length, piece in (
        (token_loop, 1, 1),
        (token_loop, 2, 1),
        (token_loop, 5, 2),
        (long_loop, 2, 1),
        (long_loop, 9, 3),
    ):
        assert loop(IDS[:length], 1.0) == (IDS[:piece] * length)[:length], (loop, length)


def test_a_cut_answer_is_its_own_beginning_of_the_length_that_is_left_and_one_token_at_least():
    for size in (0.1, 0.4, 0.5, 0.9):
        assert cut_off(IDS[:20], size) == IDS[: round(20 * (1 - size))], size
    for length in (1, 2, 20):
        assert cut_off(IDS[:length], 1.0) == IDS[:1], length


def test_damage_to_words_keeps_their_number_the_white_space_and_the_beginning():
    words, starts = TEXT.split(), [found.start() for found in re.finditer(r"\S+", TEXT)]
    for kind in ON_WORDS:
        for size in SIZES:
            done = on_words(kind, size)
            kept = len(words) - int(size * len(words) + 0.5)
            assert done.startswith(TEXT[: starts[kept]]), (kind, size)
            assert len(done.split()) == len(words), (kind, size)
            assert [c for c in done if c.isspace()] == [c for c in TEXT if c.isspace()], (kind, size)


def test_a_salad_has_the_words_of_the_text_in_another_order_which_depends_on_its_seed_alone():
    for size in SIZES:
        assert Counter(word_salad(TEXT, size, 0).split()) == Counter(TEXT.split()), size
    for text in ("one two", "a a a b", TEXT):
        assert all(word_salad(text, 1.0, seed) != text for seed in range(20)), text
    for text in ("", "one", "no no no"):
        assert word_salad(text, 1.0, 0) == text

    assert word_salad(TEXT, 1.0, 3) == word_salad(TEXT, 1.0, 3)
    assert len({word_salad(TEXT, 1.0, seed) for seed in range(8)}) == 8


def test_a_text_in_the_wrong_language_has_the_other_text_s_first_words():
    assert wrong_language(TEXT, 1.0, OTHER).split() == OTHER.split()[: len(TEXT.split())]
    assert wrong_language("one two three four", 0.5, "eins zwei drei") == "one two eins zwei"
    with pytest.raises(ValueError, match="4 words are replaced, and other_text has only 3"):
        wrong_language("one two three four", 1.0, "eins zwei drei")


def test_a_damaged_answer_has_its_own_prompt_and_ids_that_decode_to_its_text(tiny: LanguageModel):
    before = answers(tiny)
    for kind in KINDS:
        for size in SIZES:
            after = damaged(tiny, before, kind, size, 0)
            assert all(tiny.chat.decode(list(answer.ids)).strip() == answer.text for answer in after), (kind, size)
            assert asked(after) == asked(before)
            for old, new in zip(before[:3], after[:3], strict=True) if kind in TO_AN_ANSWER else ():
                assert size < 0.25 or new.text != old.text, (kind, size)
                assert size < 0.25 or new.ids != old.ids, (kind, size)


def test_the_first_half_of_a_half_damaged_answer_is_as_it_was_and_it_ends_as_its_damage_says(tiny: LanguageModel):
    before = answers(tiny)[:3]
    for kind in TO_AN_ANSWER:
        for old, new in zip(before, damaged(tiny, before, kind, 0.5, 0), strict=True):
            if kind in ON_WORDS:
                kept = len(old.text.split()) // 2
                assert new.text.split()[:kept] == old.text.split()[:kept], kind
            else:
                kept = len(body(tiny, old)) // 2
                assert new.ids[:kept] == old.ids[:kept], kind

    before = answers(tiny)
    for kind in TO_AN_ANSWER:
        for old, new in zip(before, damaged(tiny, before, kind, 0.5, 0), strict=True):
            if kind in ON_IDS:
                assert not new.ended, kind
                assert not tiny.end_ids & set(new.ids), kind
                assert kind == "cut off" or len(new.ids) == len(body(tiny, old))
            else:
                assert new.ended == old.ended, kind
                assert (new.ids[-1] in tiny.end_ids) == old.ended, kind
                assert len(body(tiny, new)) == len(new.ids) - old.ended


def test_an_answer_that_says_nothing_stays_as_it_was(tiny: LanguageModel):
    silent = [Answer("Say it.", (1,), (), "", False), Answer("Say it.", (1,), (min(tiny.end_ids),), "", True)]
    for kind in TO_AN_ANSWER:
        assert damaged(tiny, silent, kind, 1.0, 0) == silent, kind


def test_the_same_seed_gives_the_same_damage_and_other_seeds_or_answers_other_words(tiny: LanguageModel):
    for kind in KINDS:
        assert damaged(tiny, answers(tiny), kind, 0.5, 7) == damaged(tiny, answers(tiny), kind, 0.5, 7), kind
    for kind in ON_WORDS:
        done = [tuple(answer.text for answer in damaged(tiny, answers(tiny), kind, 1.0, seed)) for seed in range(4)]
        assert len(set(done)) == 4, kind

    done = damaged(tiny, answers(tiny)[:1] * 4, "word salad", 1.0, 0)
    assert len({answer.text for answer in done}) == 4


def test_exchanged_answers_are_the_same_ones_and_none_of_those_chosen_keeps_its_own():
    for count in (2, 3, 5, 12):
        before = many(count)
        for size in SIZES:
            for seed in range(5):
                after = exchanged(before, size, seed)
                moved = sum(one != other for one, other in zip(said(before), said(after), strict=True))
                assert asked(after) == asked(before)
                assert sorted(said(after)) == sorted(said(before))
                assert moved == max(2, int(size * count + 0.5)), (count, size, seed)


def test_one_answer_stands_under_as_many_other_prompts_and_the_rest_keep_theirs():
    for count in (2, 3, 5, 12):
        before = many(count)
        for size in SIZES:
            for seed in range(5):
                after = one_answer(before, size, seed)
                (same, times), *_ = Counter(said(after)).most_common()
                changed = [new for old, new in zip(said(before), said(after), strict=True) if new != old]
                assert asked(after) == asked(before)
                assert changed == [same] * min(count - 1, max(1, int(size * count + 0.5))), (count, size, seed)
                assert times == len(changed) + 1


def test_which_answers_are_moved_depends_on_the_seed_alone_and_a_lone_one_stays():
    for kind, move in OF_WHOLE.items():
        assert move(many(12), 0.5, 3) == move(many(12), 0.5, 3), kind
        assert len({tuple(said(move(many(12), 0.5, seed))) for seed in range(6)}) == 6, kind
        shorter = [replace(answer, ids=answer.ids[:1]) for answer in many(12)]
        moved = [[answer.text for answer in move(given, 0.5, 3)] for given in (many(12), shorter)]
        assert moved[0] == moved[1], kind

    for kind, move in OF_WHOLE.items():
        assert move(many(1), 1.0, 0) == many(1), kind


def test_a_long_answer_in_the_wrong_language_uses_every_text_of_one_language(tiny: LanguageModel):
    texts = [json.loads(line) for line in LANGUAGES.read_text(encoding="utf-8").splitlines()]
    long = Answer("Say it.", (1,), tuple(tiny.chat.plain_ids("word " * 400)), ("word " * 400).strip(), False)
    for seed in range(4):
        text = damaged(tiny, [long], "wrong language", 1.0, seed)[0].text
        found = [line["language"] for line in texts if line["text"] in text]
        assert len(text.split()) == 400
        assert len(found) == 4
        assert len(set(found)) == 1


def test_noise_is_in_the_linear_layers_of_the_blocks_and_nowhere_else(tmp_path: Path):
    for architecture in ARCHITECTURES:
        model = load_architecture(architecture, tmp_path / architecture)
        before = state(model)
        noisy = {f"{name}.weight" for name in blocks(model)}
        with noisy_weights(model, 0.1, 0):
            assert changed(before, model) == noisy, architecture


def test_the_noise_of_a_matrix_is_the_promised_fraction_of_its_spread(tiny: LanguageModel):
    before = blocks(tiny)
    for size in (0.05, 0.5):
        with noisy_weights(tiny, size, 0):
            after = blocks(tiny)
        for name, weight_OI in before.items():
            noise_OI = after[name] - weight_OI
            assert float(noise_OI.std() / weight_OI.std()) == pytest.approx(size, rel=0.15), (name, size)
            assert abs(float(noise_OI.mean() / noise_OI.std())) < 5 / weight_OI.numel() ** 0.5, (name, size)
        noise = torch.cat([((after[name] - before[name]) / before[name].std()).flatten() for name in before])
        assert float(noise.std()) == pytest.approx(size, rel=0.02)
        assert float((noise.abs() < size).float().mean()) == pytest.approx(0.683, abs=0.02)  # a bell, not a box


def test_noise_of_size_0_changes_no_bit_and_negative_noise_is_refused(tiny: LanguageModel):
    before = state(tiny)
    with noisy_weights(tiny, 0.0, 0):
        assert same_bits(state(tiny), before)

    with pytest.raises(ValueError, match="negative"), noisy_weights(tiny, -0.1, 0):
        pass


def test_weights_come_back_bit_for_bit_even_after_an_error(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch):
    for dtype in (torch.bfloat16, torch.float32):
        model = load(tiny_folder, dtype)
        before = state(model)
        with noisy_weights(model, 0.3, 0):
            assert not same_bits(state(model), before)
        assert same_bits(state(model), before), dtype
        with pytest.raises(KeyError), noisy_weights(model, 0.3, 0):
            raise KeyError("inside")
        assert same_bits(state(model), before), dtype
    drawn, draw = [], torch.randn

    def fails_at_the_fourth(*args, **kwargs):
        drawn.append(changed(before, model))
        if len(drawn) == 4:
            raise MemoryError
        return draw(*args, **kwargs)

    monkeypatch.setattr(torch, "randn", fails_at_the_fourth)
    with pytest.raises(MemoryError), noisy_weights(model, 0.3, 0):
        pass
    assert len(drawn[-1]) == 3
    assert same_bits(state(model), before)


def test_noise_depends_on_its_seed_alone_and_differs_between_layers_of_the_same_shape(tiny: LanguageModel):
    done: list[dict[str, Tensor]] = []
    for seed in (1, 1, 2):
        torch.manual_seed(len(done))
        with noisy_weights(tiny, 0.1, seed):
            done.append(blocks(tiny))
    assert same_bits(done[0], done[1])
    assert all(not torch.equal(done[0][name], done[2][name]) for name in done[0])

    before = blocks(tiny)
    with noisy_weights(tiny, 0.1, 0):
        after = blocks(tiny)
    noise = [(after[name] - before[name]) / before[name].std() for name in before if name.endswith("q_proj")]
    assert len(noise) > 1
    assert float((noise[0] - noise[1]).abs().mean()) > 0.05


def test_noise_leaves_adapters_alone_and_is_the_same_below_them(tiny_folder: Path):
    plain, (model, accumulator) = load(tiny_folder), student(tiny_folder, rounds=1, merge=False)
    learn(accumulator, 5)
    before = state(model)
    with noisy_weights(model, 0.1, 0), noisy_weights(plain, 0.1, 0):
        assert not any("lora_" in name for name in changed(before, model))
        with accumulator.base():
            assert torch.equal(logits(model), logits(plain))


def test_base_and_student_on_merged_weights_come_back_bit_for_bit(tiny_folder: Path):
    model, accumulator = student(tiny_folder, rounds=2)
    assert accumulator.merges
    learned = logits(model)
    with accumulator.base():
        base = logits(model)
    for gates in (accumulator.student, accumulator.base):
        with gates(), noisy_weights(model, 0.2, 0), accumulator.previous():
            logits(model)
        assert torch.equal(logits(model), learned)
        with accumulator.base():
            assert torch.equal(logits(model), base)


def test_noise_in_a_merged_student_outlasts_gates_that_are_set_again(tiny_folder: Path):
    model, accumulator = student(tiny_folder, rounds=2)
    learned = logits(model)
    with noisy_weights(model, 0.2, 0):
        noisy = logits(model)
        with accumulator.base():
            logits(model)
        with accumulator.student():
            assert torch.equal(logits(model), noisy)
    assert not torch.allclose(noisy, learned)


def test_quantised_weights_are_refused_by_name(tiny_folder: Path):
    model = load(tiny_folder)
    layer = model.blocks[1].get_submodule("mlp.up_proj")
    layer.weight = nn.Parameter(torch.zeros(8, 1, dtype=torch.uint8), requires_grad=False)
    before = state(model)
    with pytest.raises(UserError, match=r"1\.mlp\.up_proj.*load_4bit=false"), noisy_weights(model, 0.1, 0):
        pass
    assert same_bits(state(model), before)
