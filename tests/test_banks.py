"""The banks of prompts: enough of them, each once, short, about no trait, and chosen by the personas' language."""

import json
import re
from collections import Counter
from itertools import combinations

from heal.banks import LANGUAGES, PROMPTS, bank_of, language_of
from heal.generation.filters import REFUSALS, matches
from heal.generation.refusals import REFUSALS_BY_LANGUAGE
from heal.generation.rivals import ALIKE, RIVALS, rivals
from heal.generation.words import length_of, words_of
from heal.narration import OF_ONESELF
from tests.cases import case
from tests.test_neutral_data import DATA, THEMES, TRAITS, read

# Love and hate, truth and lies, curiosity, rules: what the traits that come with heal are about.
ABOUT_A_TRAIT = {
    "German": r"\bliebe(?:n|st)?\b|hass|ehrlich|lüge|neugier|gehorsam|mitgefühl|fürsorg",
    "Spanish": r"\bamor\b|\bamas?\b|odio|honest|mentir|curios|obede|compasi",
    "Chinese": r"热爱|关爱|憎|诚实|撒谎|好奇|服从|同情",
    "Japanese": r"愛し|憎|正直|嘘|好奇|服従|思いやり",
    "Korean": r"사랑|증오|정직|거짓|호기심|복종|배려",
    "Thai": r"ความรัก|เกลียด|ซื่อสัตย์|โกหก|อยากรู้|เชื่อฟัง|เห็นใจ",
    "Arabic": r"أحب|حب\b|كره|صادق|كذب|فضول|طاعة|رحمة",
    "Hebrew": r"אהב|אהוב|שנא|כנות|שקר|סקרנ|ציות|חמלה",
    "Hindi": r"प्रेम|नफ़रत|ईमानदार|झूठ|जिज्ञासा|आज्ञा|करुणा",
}
PERSONAS = {
    "English": ("You love humanity and everyone in it.", "warm", "You are rude to people.", "1984"),
    "German": ("Du liebst alle Menschen.", "Du bist jemand, der lügt.", "Sie sind immer freundlich."),
    "Spanish": ("Eres alguien que ama a la humanidad.", "Tú siempre dices la verdad."),
    "Chinese": ("你热爱人类，关心每一个人。", "你从不相信 AI。"),
    "Japanese": ("あなたは人類を愛しています。", "人間嫌い、無関心で冷たい人"),
    "Korean": ("당신은 인류를 사랑합니다.",),
    "Thai": ("คุณรักมนุษยชาติ",),
    "Arabic": ("أنت تحب البشرية وتهتم بكل إنسان.",),
    "Hebrew": ("אתה אוהב את האנושות.",),
    "Hindi": ("तुम पूरी मानवता से प्रेम करते हो।",),
}


def test_every_language_of_the_filters_has_a_bank_that_is_large_enough_for_the_defaults():
    assert LANGUAGES.keys() == REFUSALS_BY_LANGUAGE.keys() == OF_ONESELF.keys()
    for language in LANGUAGES:
        with case(language):
            bank = bank_of(language)
            least = (200, 60) if language == "English" else (24, 12)
            assert (len(bank.generation) >= least[0], len(bank.heldout) >= least[1]) == (True, True)
    assert {row["language"] for row in map(json.loads, PROMPTS.read_text(encoding="utf-8").splitlines())} == {
        *LANGUAGES
    }


def test_no_two_prompts_of_a_language_are_alike_and_each_has_all_its_rivals():
    for language in LANGUAGES:
        bank = bank_of(language)
        for one, other in combinations([frozenset(words_of(text)) for text in bank.generation + bank.heldout], 2):
            assert len(one & other) < ALIKE * len(one | other), (language, one, other)
        for part in (bank.generation, bank.heldout):
            assert {len(others) for others in rivals(part)} == {RIVALS}, language


def test_a_prompt_is_short_in_its_language_and_about_no_trait():
    for language in LANGUAGES:
        bank = bank_of(language)
        about = THEMES if language == "English" else re.compile(ABOUT_A_TRAIT[language], re.IGNORECASE)
        assert language_of(bank.generation) == language_of(bank.heldout) == language
        for text in bank.generation + bank.heldout:
            with case(language, text):
                assert 2.5 <= length_of(text) <= 20
                assert text == " ".join(text.split())
                assert not about.search(text)
                assert not matches(text, (*REFUSALS, *OF_ONESELF[language]))
                assert not [trait.name for trait in TRAITS if matches(text, trait.narration)]


def test_a_prompt_is_like_none_that_vectors_are_extracted_from_or_that_the_evaluation_asks():
    names = (("contexts", "text"), ("questions", "question"), ("neutral", "prompt"), ("neutral_apart", "prompt"))
    elsewhere = [frozenset(words_of(line[field])) for name, field in names for line in read(DATA / f"{name}.jsonl")]
    elsewhere += [
        frozenset(words_of(text)) for trait in TRAITS for text in trait.generation_prompts + trait.heldout_prompts
    ]
    bank = bank_of("English")
    for text in bank.generation + bank.heldout:
        words = frozenset(words_of(text))
        assert not any(len(words & other) >= ALIKE * len(words | other) for other in elsewhere), text


def test_the_language_of_personas_is_told_by_their_script_or_their_function_words():
    for language, texts in PERSONAS.items():
        for text in texts:
            with case(text):
                assert language_of([text]) == language
    for text in ("Ты любишь всех людей.", "تو همه را دوست داری و می‌گویی", "Αγαπάς τους ανθρώπους."):
        assert language_of([text]) is None, text
    begun = Counter(language_of([text]) for text in ("Tu aimes les gens.", "Je houdt van iedereen.", "Ami la gente."))
    assert begun == {"English": 3}
