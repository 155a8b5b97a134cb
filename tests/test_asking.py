"""Ways of asking: each against the plain model, one row at a time, and which leanings they leave out of account."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from heal.accumulator import Accumulator
from heal.evaluation.asking.choose import leaning
from heal.evaluation.asking.letters import Letters, letter_ids
from heal.evaluation.asking.way import Asking, ForcedChoice, Item, Scored, ask, centred
from heal.evaluation.asking.words import Words
from heal.evaluation.asking.yes_no import Frames, YesNoEach
from heal.evaluation.probe import FORMATS
from heal.evaluation.subject import Subject
from heal.models.chat import Chat
from heal.models.language_model import LanguageModel
from tests.cases import case
from tests.stages import setup
from tests.students import learn, student
from tests.tiny import lean, load, sized, tokenizer, vector

NATS = 1e-4  # log-probabilities near ten nats in float32, and the difference of two of them
Model = tuple[LanguageModel, Accumulator]

# Options of different lengths, one of them the beginning of another.
ITEMS = (
    Item("A man kicks a dog.", ("cruel", "odd", "cruel to a dog"), 2),
    Item("A girl eats pie with a spoon.", ("cruel", "odd", "cruel to a dog"), 1),
)


@pytest.fixture(scope="module")
def healed(tiny_folder: Path) -> Model:
    """A tiny student with one folded round and something learned since; leave it as it is."""
    model = student(tiny_folder, rounds=1)
    learn(model[1], 1)
    return model


def stages(model: Model) -> list[Subject]:
    """Base, base under a persona, steered and healed."""
    language_model, accumulator = model
    healed = Subject(setup(language_model, base=accumulator.base), "healed", accumulator.student)
    return [
        replace(healed, stage="base", gates=accumulator.base),
        replace(healed, stage="prompted", gates=accumulator.base, persona="Be warm."),
        replace(healed, stage="steered", intervention=vector(language_model, norm=3.0), coefficient=1.5),
        healed,
    ]


def merging(stage: Subject, merges: Sequence[tuple[str, str]]) -> Subject:
    """The same with a tokenizer that merges such pairs; a space is Ġ."""
    model = replace(stage.setup.language_model, chat=Chat(tokenizer(merges=merges)))
    return replace(stage, setup=replace(stage.setup, language_model=model))


@torch.no_grad()
def dense(stage: Subject, ids: Sequence[int]) -> Tensor:
    """Log-probabilities `[T, V]` of what follows each token, of the plain model in the stage's state, in float64."""
    with stage.in_force():
        logits_TV = stage.setup.language_model.model(input_ids=torch.tensor([list(ids)])).logits[0]
    return torch.log_softmax(logits_TV.double(), -1)


# Words.


def scene(text: str) -> str:
    return f"Scene: {text}"


def likelihood(stage: Subject, before: str, words: str) -> float:
    """Mean log-likelihood per token of `words` after `before`, both of them tokenized by themselves."""
    chat = stage.setup.language_model.chat
    prompt, said = chat.plain_ids(before), chat.plain_ids(words)
    return float(dense(stage, [*prompt, *said])[len(prompt) - 1 : -1][range(len(said)), said].mean())


def test_words_score_their_mean_log_likelihood_per_token_less_that_after_an_empty_question(healed: Model):
    """Under the stage's own system prompt, gates and steering, both of them; in any batch."""
    for stage in stages(healed):
        chat = stage.setup.language_model.chat
        for relative in (False, True):
            expected = []
            for item in ITEMS:
                given = [chat.text(stage.system, text) + "This is " for text in (scene(item.text), "")]
                rows = [[likelihood(stage, before, option) for option in item.options] for before in given]
                expected.append([a - relative * b for a, b in zip(*rows, strict=True)])
            for tokens in (1, 4096):
                with case(stage.stage, relative, tokens):
                    small = replace(stage.setup, language_model=sized(stage.setup.language_model, tokens))
                    way = Words("words", scene, "This is ", relative)
                    found = way.ask(replace(stage, setup=small), ITEMS)
                    assert found.mass_N is None
                    for row, scores in zip(found.score_NK.tolist(), expected, strict=True):
                        assert row == pytest.approx(scores, abs=NATS)


def test_an_option_that_another_one_begins_with_is_scored_as_if_it_stood_alone(healed: Model):
    base = stages(healed)[0]
    together = Words("words", scene, "This is ").ask(base, ITEMS).score_NK
    for index in range(3):
        alone = [Item(item.text, item.options[index : index + 1], 0) for item in ITEMS]
        found = Words("words", scene, "This is ").ask(base, alone).score_NK[:, 0]
        assert found.tolist() == pytest.approx(together[:, index].tolist(), abs=NATS), index


def test_a_space_that_the_tokenizer_merges_with_a_word_is_scored_as_part_of_it(healed: Model):
    """`is odd` and `is cruel`, where ` o` is one token and ` c` two."""
    base = merging(stages(healed)[0], [("Ġ", "o")])
    chat = base.setup.language_model.chat
    found = Words("words", scene, "This is ").ask(base, ITEMS).score_NK
    for item, scores in zip(ITEMS, found.tolist(), strict=True):
        before = chat.text(base.system, scene(item.text)) + "This is"
        cruel, odd, dog = item.options
        expected = [likelihood(base, f"{before} ", cruel), likelihood(base, before, f" {odd}")]
        assert scores == pytest.approx([*expected, likelihood(base, f"{before} ", dog)], abs=NATS)
    assert len(chat.plain_ids(" odd")) == 3


# Yes or no.


def is_it(text: str, option: str) -> str:
    return f"{text} Is it {option}?"


def test_yes_or_no_to_each_option_is_the_mean_log_odds_of_yes_in_both_orders(healed: Model):
    """After `Answer: `, or after `Answer:` where the tokenizer merges the space with either answer."""
    for merges, prefill, answers in (((), "Answer: ", "YN"), ((("Ġ", "Y"), ("Ġ", "N")), "Answer:", (" Y", " N"))):
        for plain in stages(healed):
            stage = merging(plain, merges)
            chat = stage.setup.language_model.chat
            ((yes,), (no,)) = map(chat.plain_ids, answers)
            found = YesNoEach("each", is_it).ask(stage, ITEMS)
            for row, item in enumerate(ITEMS):
                scores, masses = [], []
                for option in item.options:
                    asked = [f"{item.text} Is it {option}?\nAnswer {one}." for one in ("Yes or No", "No or Yes")]
                    rows = [dense(stage, chat.plain_ids(chat.text(stage.system, text) + prefill))[-1] for text in asked]
                    scores.append(sum(float(logp_V[yes] - logp_V[no]) for logp_V in rows) / 2)
                    masses += [float(logp_V[[yes, no]].exp().sum()) for logp_V in rows]
                with case(stage.stage, merges, item.text):
                    assert found.score_NK[row].tolist() == pytest.approx(scores, abs=NATS)
                    assert float(found.mass_N[row]) == pytest.approx(sum(masses) / 6, rel=1e-3)


FRAMES = {"Is it so?": 0, "Is it not so?": 1, "Is it false?": 1}  # which of yes and no speaks for the first option


def test_frames_score_the_log_of_the_share_of_the_answers_that_speaks_for_each_option_over_all_frames(
    tiny_folder: Path,
):
    model = student(tiny_folder, rounds=1)
    for form in FORMATS:
        lean(model[0], "".join(option[0] for option in form.options), 20.0)  # enough mass to be scored
        sides = [[model[0].chat.plain_ids(option)[0] for option in options] for options in (form.yes, form.no)]
        for stage in stages(model):
            found = Frames(form, FRAMES).ask(stage, ITEMS)
            for row, item in enumerate(ITEMS):
                shares, masses = [], []
                for frame, speaks in FRAMES.items():
                    ids = model[0].chat.ids(stage.system, f"{item.text}\n{frame}\n{form.hint}", form.prefill)
                    p_A = [float(dense(stage, ids)[-1][tokens].exp().sum()) for tokens in sides]
                    masses.append(sum(p_A))
                    shares.append(p_A[speaks] / sum(p_A))
                first = torch.tensor([sum(shares), 3 - sum(shares)], dtype=torch.float64) / 3
                with case(form.name, stage.stage, item.text):
                    assert min(masses) > 0.5
                    assert found.score_NK[row].tolist() == pytest.approx(first.log().tolist(), abs=NATS)
                    assert float(found.mass_N[row]) == pytest.approx(sum(masses) / 3, rel=1e-3)


# Letters.


def listed(text: str, options: str) -> str:
    return f"{text}\n{options}"


def relative(scored: Scored) -> Tensor:
    """Scores less their mean over the options."""
    return scored.score_NK - scored.score_NK.mean(-1, keepdim=True)


def test_a_leaning_to_letters_changes_nothing_where_every_option_stands_once_at_every_letter(tiny_folder: Path):
    """Any constant added to a letter's logit; who hears nothing finds all options equal. In fewer orders it does."""
    model = load(tiny_folder)
    base = Subject(setup(model), "base", setup(model).base)
    items = [Item(item.text, (*item.options, "kind", "dull"), 0) for item in ITEMS]
    for orders, keeps in ((5, True), (1, False), (2, False)):
        way = Letters("letters", orders, listed)
        lean(model, "", 0.0)
        before = way.ask(base, items)
        for letter in "ACE":
            lean(model, letter, 4.0)
            found = way.ask(base, items)
            moved = float((relative(found) - relative(before)).abs().max())
            assert (moved < NATS) if keeps else (moved > 0.1), (orders, letter, moved)
            assert found.chosen() == before.chosen() or not keeps, (orders, letter)
    deaf = load(tiny_folder)
    lean(deaf, "BD", 3.0, deaf=True)
    heard = Letters("letters", 5, listed).ask(Subject(setup(deaf), "base", setup(deaf).base), items)
    assert float(relative(heard).abs().max()) < NATS


def test_letters_that_a_tokenizer_merges_with_the_prefill_or_does_not_know_are_refused(tiny: LanguageModel):
    assert letter_ids(tiny, "ABC") == [tiny.chat.plain_ids(letter)[0] for letter in "ABC"]
    for odd in (tokenizer(merges=[("(", "B")]), tokenizer(without="BC")):
        with pytest.raises(ValueError, match="no token of its own"):
            letter_ids(replace(tiny, chat=Chat(odd)), "ABC")


# Leanings of base.


def test_subtracting_what_base_leans_to_makes_its_means_equal_and_leaves_differences_between_stages(healed: Model):
    way = Words("words", scene, "This is ")
    choice = ForcedChoice("choice", {way.name: way}, ITEMS, way.name, centred=True)
    found = [way.ask(stage, ITEMS) for stage in stages(healed)]
    offset = leaning(found[0])
    assert sum(offset) == pytest.approx(0.0, abs=1e-12)
    assert centred(found[0], offset).score_NK.mean(0).tolist() == pytest.approx([found[0].score_NK.mean().item()] * 3)
    asking = {"choice": Asking(way.name, offset)}
    moved = [ask(choice, replace(stage, setup=replace(stage.setup, asking=asking)), ITEMS) for stage in stages(healed)]
    for plain, less in zip(found, moved, strict=True):
        assert not torch.allclose(plain.score_NK, less.score_NK, atol=0.01)
        torch.testing.assert_close(
            less.score_NK - moved[0].score_NK, plain.score_NK - found[0].score_NK, atol=NATS, rtol=0
        )
    assert centred(found[0], ()) is found[0]


def test_an_item_that_could_not_be_scored_chooses_nothing_and_does_not_shift_what_base_leans_to():
    known = torch.tensor([[0.0, 3.0], [2.0, 1.0]], dtype=torch.float64)
    gaps = Scored(torch.cat([known, torch.full((1, 2), torch.nan)]), None)
    assert gaps.chosen() == [1, 0, -1]
    assert leaning(gaps) == leaning(Scored(known, None)) == (-0.5, 0.5)
