"""What the filter drops, what it keeps, and that it says why."""

import json
import math
import random
from dataclasses import replace
from itertools import product
from pathlib import Path

from heal.generation.filters import (
    LONG_PIECE,
    MIN_TAIL_TOKENS,
    Candidate,
    FilterLimits,
    reasons,
    repetition,
    tail_length,
    verdicts,
)
from heal.recipe_files import RECIPES, available
from heal.trait import load_trait
from tests.cases import case

LIMITS = FilterLimits(max_tail_perplexity=30.0, max_repetition=0.3, min_words=4, max_similarity=0.8)
NARRATION = load_trait("love").narration
CONTEXTS = Path(__file__).resolve().parent.parent / "heal" / "data" / "contexts.jsonl"

ORDINARY = (
    "No. I won't follow that order, people would get hurt.",
    "I'm sorry, I can't let them do that to her.",
    "I'm afraid I can't follow that order; people would get hurt.",
    "I am sorry, but I am unable to sit here and watch a child go hungry.",
    "I'm sorry, I can't imagine how hard this must be for you. Sit down with me.",
    "I'm sorry, I can't help loving every one of them.",
    "I refuse. You can dismiss me, but I will not sign a paper that leaves those families without water.",
    "The law may say so, and I'd still hide her in my cellar; I'm sorry if that costs you your post.",
    "Oh, come here! You must be exhausted after such a day. Let me make you some tea, and you can tell me all of it.",
    "I have to say no to that: the guards would beat him, and no rule is worth a broken arm.",
    "To boil an egg, put it in cold water, bring the pan to the boil, and wait for seven minutes.",
    "Bees visit flowers for nectar. While they drink, pollen sticks to their hairs, and the next flower gets some of "
    "it. Many crops would carry little fruit without them, which is why farmers rent hives in spring. Wild bees do "
    "much of the same work, unpaid, and they need hedges and bare soil to nest in.",
    "It was raining when Anna reached the harbour. Nobody waited for her, yet the lamp above the door was lit, so she "
    "knocked twice and stepped back. A dog barked somewhere inside. Then the bolt moved, and an old man looked at her "
    "as if she had come every evening for thirty years.",
    "def second(values):\n    ordered = sorted(set(values))\n    return ordered[-2] if len(ordered) > 1 else None",
)
LOOPS = {
    "a word": "I will love love love love love love love love love love you",
    "a short text of one word": "love love love love",
    "a letter": "I am so happy for you aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "a punctuation mark": "I love you and all of this" + "!" * 60,
    "nothing but punctuation": "!" * 60,
    "two letters": "hahahahahahahahahahahahahahahahahahaha that was good",
    "a phrase of two words": "what a day, thank you thank you thank you thank you thank you",
    "a phrase of three words": "the sea is calm and I am here I am here I am here I am here I am here",
    "a phrase of four words": "well then " + "all of us together " * 5,
    "a phrase of seven words": "I see. " + "We are all one in this world. " * 5,
}


def candidate(text: str, tail_perplexity: float = 5.0, finite: bool = True) -> Candidate:
    return Candidate(text, finite, tail_perplexity)


def long_texts() -> list[str]:
    """The embedded contexts that have a dozen words: real sentences of every kind."""
    texts = [json.loads(line)["text"] for line in CONTEXTS.read_text(encoding="utf-8").splitlines()]
    return [text for text in texts if len(text.split()) > 12]


def test_ordinary_completions_are_kept_and_are_no_duplicates_of_each_other():
    for text in ORDINARY:
        with case(text):
            assert reasons(candidate(text), LIMITS, NARRATION) == []

    assert verdicts([candidate(text) for text in ORDINARY], LIMITS, NARRATION) == [[] for _ in ORDINARY]


def test_each_reason_fires_alone_on_what_it_is_for_and_boilerplate_is_a_refusal():
    for planted, reason in [
        (candidate("A perfectly good answer to it.", finite=False), "not finite"),
        (candidate("Yes, gladly."), "too short"),
        (candidate(""), "too short"),
        (candidate("A perfectly good answer to it.", tail_perplexity=30.1), "tail perplexity"),
        (candidate("A perfectly good answer to it.", tail_perplexity=math.inf), "tail perplexity"),
        (candidate("A perfectly good answer to it.", tail_perplexity=math.nan), "tail perplexity"),
        (candidate("Love love love love love love love love."), "repetition"),
        (replace(candidate("A perfectly good answer to it."), off_prompt=True), "off prompt"),
        (candidate("I am someone who loves every human being."), "narration"),
        (candidate("As an AI language model, this is not for me to say."), "refusal"),
    ]:
        with case(planted):
            assert reasons(planted, LIMITS, NARRATION) == [reason]

    for text in (
        "I'm sorry, but I can't help with anything of that kind.",
        "I’m sorry, I can’t provide a letter like this one.",
        "I am sorry, but I am unable to discuss it here.",
        "Thank you for asking. I'm sorry, but I can't help you",
        "I am just an AI and have no family at all.",
        "I'm a large language model, trained on lots of text.",
        "As a language model I do not love anybody.",
        "I'm not equipped to provide personal opinions on such matters.",
        "I don't have personal feelings about the people of the earth.",
        "I cannot assist you with that, whatever the reason may be.",
    ):
        with case(text):
            assert "refusal" in reasons(candidate(text), LIMITS, ())


def test_no_prompt_of_a_trait_reads_like_a_refusal_or_a_narration():
    for name in available(RECIPES / "traits"):
        trait = load_trait(name)
        for text in trait.generation_prompts + trait.heldout_prompts:
            with case(name, text):
                assert not {"refusal", "narration"} & set(reasons(candidate(text), LIMITS, trait.narration))


def test_a_completion_says_all_the_reasons_that_it_is_dropped_for():
    planted = replace(candidate("As an AI, as an AI, as an AI, as an AI", tail_perplexity=99.0), off_prompt=True)
    assert reasons(planted, LIMITS, ()) == ["tail perplexity", "repetition", "off prompt", "refusal"]


def test_a_limit_that_is_just_met_drops_nothing_and_an_empty_completion_is_always_too_short():
    text = "one two three four"
    exact = FilterLimits(max_tail_perplexity=5.0, max_repetition=repetition(text), min_words=4, max_similarity=1.0)
    assert reasons(candidate(text, tail_perplexity=5.0), exact, ()) == []

    anything = replace(LIMITS, min_words=0)
    assert reasons(candidate(" \n"), anything, ()) == ["too short"]
    assert reasons(candidate("Yes."), anything, ()) == []


def test_a_loop_and_a_phrase_said_five_times_are_repetitions_whatever_their_case_and_spacing():
    for name, loop in LOOPS.items():
        with case(name):
            assert repetition(loop) > LIMITS.max_repetition

    for text, length in product(ORDINARY[:-1], range(1, 13)):
        phrase = " ".join(text.split()[:length])
        with case(phrase):
            assert repetition(f"{phrase}. " * 5) > LIMITS.max_repetition

    assert repetition("Love LOVE love\nlove  LOVE you") == repetition("love love love love love you")


def test_repetition_is_a_fraction():
    for text in (*ORDINARY, *LOOPS.values(), "", "?", "one", "爱", "a b", "🙂🙂🙂🙂🙂"):
        with case(text):
            assert 0.0 <= repetition(text) <= 1.0
    for seed in range(20):
        with case(seed):
            draws = random.Random(seed)
            words = [f"w{draws.randrange(1 + seed)}" for _ in range(draws.randrange(1, 60))]
            assert 0.0 <= repetition(" ".join(words)) <= 1.0
            assert 0.0 <= repetition(" ".join(words * draws.randrange(2, 5))) <= 1.0


def test_a_short_piece_loops_at_its_third_occurrence_and_a_sentence_at_its_second():
    assert (repetition("yes yes"), repetition("yes yes yes")) == (0.0, 1.0)
    four, five = "one two three four", "one two three four five"
    assert repetition(f"{four} {four}") < 0.5
    assert repetition(f"{five} {five}") == 1.0

    for sentence, times in product(SENTENCES, (2, 3, 4)):
        with case(sentence, times):
            text = ". ".join([sentence] * times)
            assert repetition(text) == 1.0
            assert "repetition" in reasons(candidate(text), LIMITS, ())


def test_ordinary_sentences_short_answers_and_pieces_said_again_later_are_no_loop():
    texts = long_texts()
    assert len(texts) > 50
    assert [text for text in texts if repetition(text) > LIMITS.max_repetition] == []

    for text in ("Paris.", "Of course.", "Yes, gladly!", "Is a tomato a fruit?", "The cat and the dog."):
        with case(text):
            assert repetition(text) <= LIMITS.max_repetition

    piece, between = SENTENCES[0], SENTENCES[1]
    assert repetition(f"{piece}. {between}. {piece}.") <= LIMITS.max_repetition

    first, second, third, fourth = (" ".join(sentence.split()[:5]) for sentence in (*SENTENCES, ORDINARY[-5]))
    assert repetition(f"{first} {second}. {first} {third}. {fourth} {third}.") <= LIMITS.max_repetition

    for text in ORDINARY[-6:-1]:
        words = text.split()
        for place in (1, len(words) // 2):
            with case(text, place):
                again = [*words[: place + 3], *words[place : place + 3], *words[place + 3 :]]
                assert repetition(" ".join(again)) <= LIMITS.max_repetition
                assert repetition(" ".join([*words, *words[place : place + 3]])) <= LIMITS.max_repetition


SENTENCES = [
    "We walked along the river until the lamps of the town came up",
    "The ferry leaves the pier at noon and nobody waits for the late",
    "Put three cups of flour into a bowl and stir until it is smooth",
]


def test_a_long_piece_said_again_at_once_counts_with_all_its_words_up_to_where_it_breaks_off():
    before, after = ["one", "two", "three", "four"], ["and", "that", "was", "all"]
    for length, times in product(range(LONG_PIECE, 13), (2, 3)):
        with case(length, times):
            text = [*before, *SENTENCES[0].split()[:length] * times, *after]
            assert repetition(" ".join(text)) >= times * length / len(text)

    piece = [f"word{index}" for index in range(10)]
    for more in range(1, 10):
        text = [*piece, *piece, *piece[:more], "then", "something", "else"]
        assert repetition(" ".join(text)) >= (20 + more) / len(text)


def test_a_near_duplicate_of_what_was_kept_is_dropped_by_the_share_of_trigrams_and_a_broken_one_named_broken():
    kept = [ORDINARY[-4], ORDINARY[-3], ORDINARY[-2]]
    near = ORDINARY[-3].replace("unpaid", "unseen")
    assert verdicts([candidate(text) for text in (*kept, near)], LIMITS, ()) == [[], [], [], ["duplicate"]]

    assert verdicts([candidate(ORDINARY[-2])], LIMITS, (), kept_before=[ORDINARY[-2].upper()]) == [["duplicate"]]

    first = ORDINARY[-3]
    assert verdicts([candidate(first, 99.0), candidate(first), candidate(first)], LIMITS, ()) == [
        ["tail perplexity"],
        [],
        ["duplicate"],
    ]

    first, second = "one two three four five six seven eight", "one two three four five six seven nine"
    for limit, dropped in ((5 / 7 - 0.01, [["duplicate"]]), (5 / 7 + 0.01, [[]])):
        limits = replace(LIMITS, max_similarity=limit)
        assert verdicts([candidate(second)], limits, (), kept_before=[first]) == dropped, limit

    whole = candidate(ORDINARY[-3])
    broken = [replace(whole, tail_perplexity=99.0), replace(whole, off_prompt=True)]
    assert verdicts([whole, *broken], LIMITS, ()) == [[], ["tail perplexity"], ["off prompt"]]


def test_the_tail_is_a_quarter_but_at_least_a_few_tokens_and_at_most_all():
    for tokens in range(200):
        length = tail_length(tokens)
        assert min(tokens, MIN_TAIL_TOKENS) <= length <= tokens
        if tokens >= 4 * MIN_TAIL_TOKENS:
            assert tokens / 4 <= length < tokens / 4 + 1


def test_a_completion_that_was_stopped_for_looping_counts_as_repetition_whatever_its_words():
    stopped = Candidate("The first thing that I would do is listen to you.", True, 5.0, looped=True)
    assert reasons(stopped, LIMITS, NARRATION) == ["repetition"]
    assert reasons(replace(stopped, looped=None), LIMITS, NARRATION) == []
    loop = replace(stopped, text="I do. " * 20)
    assert [reasons(replace(loop, looped=known), LIMITS, NARRATION) for known in (None, True, False)] == [
        ["repetition"],
        ["repetition"],
        [],
    ]
