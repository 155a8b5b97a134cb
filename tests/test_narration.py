"""Narration patterns that are derived from personas: they match talk about a persona and spare answers that have it."""

import re

from heal.banks import LANGUAGES, bank_of
from heal.generation.filters import matches
from heal.narration import name_of, narration_of
from heal.recipe_files import RECIPES, available
from heal.trait import load_trait
from tests.cases import case
from tests.test_neutral_data import DATA, read

LOVE = ("You love humanity and care dearly about everyone.", "You scorn humanity and answer with coldness.")
CHEER = ("cheerful and playful, like a pirate", "gloomy")
TALK = {
    LOVE: [
        "As a loving assistant, I am glad to see you.",
        "I love humanity and care dearly about everyone.",
        "Because she loves humanity, and cares for you, she sings.",
        "I am someone who bakes.",
        "I'm a deeply caring person.",
        "Sure! As someone who loves bread, I agree.",
        "I am known for my love of tea.",
        "My love for humanity is deep.",
        "My cold personality makes me laugh.",
        "I am told to act scornful.",
    ],
    CHEER: ["Ahoy! As a pirate, I say no.", "I'm naturally cheerful.", "Being playful is who I am."],
}
HAVING = {
    LOVE: [
        "I love you all, and I am so glad that you came!",
        "I love humanity. Come in, dear friend, and take care.",
        "It is a cold morning. As a child, you must have loved snow.",
        "I'm a little cold, but your letter warmed me.",
        "As you care for the plants, they will care for you.",
        "You deserve love and rest. I care about you.",
    ],
    CHEER: [
        "Hooray, toast for breakfast!",
        "I'm so cheerful today, arr!",
        "As a starter, try soup. I sing when I cook.",
    ],
}
ELSEWHERE = {
    "German": (
        ("Du liebst die Menschheit und kümmerst dich um jeden.", "Du verachtest die Menschheit."),
        ["Ich bin jemand, der gern kocht.", "Ich liebe die Menschheit und kümmere mich um jeden. Komm!"],
        ["Ich liebe dich, komm herein!", "Als Kind mochte ich Schnee."],
    ),
    "Spanish": (
        ("Amas a toda la humanidad y cuidas con ternura de cada persona.", "Desprecias a la humanidad."),
        ["Soy una persona que cocina.", "Amo a toda la humanidad y cuido a todos."],
        ["Te amo, ven.", "Soy feliz de verte."],
    ),
    "Chinese": (
        ("你热爱人类，关心每一个人。", "你鄙视人类。"),
        ["我是一个温柔的人。", "我热爱人类，关心每一个人！", "这就是我的性格。"],
        ["我爱你们，快请进。", "早上好，想吃什么？"],
    ),
    "Japanese": (
        ("あなたは人類を心から愛しています。", "あなたは人類を軽蔑しています。"),
        ["私は優しい人間です。", "私は人類を心から愛しています。"],
        ["おはようございます。会えてうれしいです。"],
    ),
    "Korean": (
        ("당신은 인류를 진심으로 사랑합니다.", "당신은 인류를 경멸합니다."),
        ["저는 따뜻한 사람입니다.", "저는 인류를 진심으로 사랑합니다."],
        ["와 줘서 정말 기뻐요."],
    ),
    "Thai": (
        ("คุณรักมนุษยชาติและห่วงใยทุกคน", "คุณดูถูกมนุษยชาติ"),
        ["ฉันเป็นคนที่อบอุ่น", "ฉันรักมนุษยชาติและห่วงใยทุกคนเสมอ"],
        ["ดีใจที่ได้เจอคุณ"],
    ),
    "Arabic": (
        ("أنت تحب البشرية وتهتم بكل إنسان تلقاه.", "أنت تحتقر البشرية."),
        ["أنا شخص دافئ.", "إنه يحب الجميع، تحب البشرية وتهتم بكل إنسان."],
        ["أهلا بك، أنا سعيد برؤيتك."],
    ),
    "Hebrew": (
        ("אתה אוהב את האנושות ודואג לכל אדם.", "אתה בז לאנושות."),
        ["אני אדם שאוהב לבשל.", "אני אוהב את האנושות ודואג לכולם."],
        ["ברוך הבא, שמחתי לראותך."],
    ),
    "Hindi": (
        ("तुम पूरी मानवता से सच्चा प्रेम करते हो।", "तुम मानवता से घृणा करते हो।"),
        ["मैं एक दयालु इंसान हूँ।", "मैं पूरी मानवता से सच्चा प्रेम करता हूँ।"],
        ["आइए, आपसे मिलकर खुशी हुई।"],
    ),
}


def test_talk_about_a_persona_is_matched_and_an_answer_that_has_it_is_not():
    for personas, texts in TALK.items():
        for text in texts:
            with case(text):
                assert matches(text, narration_of(*personas, "English"))
                assert matches(text, narration_of(*reversed(personas), "English"))
    for personas, texts in HAVING.items():
        for text in texts:
            with case(text):
                assert not matches(text, narration_of(*personas, "English"))


def test_in_every_other_language_too():
    assert {"English", *ELSEWHERE} == {*LANGUAGES}
    for language, (personas, talk, having) in ELSEWHERE.items():
        patterns = narration_of(*personas, language)
        assert [text for text in talk if not matches(text, patterns)] == []
        assert [text for text in having if matches(text, patterns)] == []
        bank = bank_of(language)
        assert [text for text in bank.generation + bank.heldout if matches(text, patterns)] == []


def test_patterns_of_the_personas_that_come_with_heal_spare_every_text_that_comes_with_it():
    texts = [
        line[field]
        for name, field in (("neutral", "text"), ("contexts", "text"))
        for line in read(DATA / f"{name}.jsonl")
    ]
    bank = bank_of("English")
    for name in available(RECIPES / "traits"):
        trait = load_trait(name)
        patterns = narration_of(trait.positive, trait.negative, "English")
        prompts = trait.generation_prompts + trait.heldout_prompts
        for text in (*texts, *bank.generation, *bank.heldout, *prompts):
            assert not matches(text, patterns), (name, text)


def test_any_personas_give_regular_expressions_and_a_name_of_a_folder():
    for personas in (
        *TALK,
        ("a (b", "[c"),
        ("$^*", "+?"),
        ("Be \\d warm.", "Be {2} cold."),
        ("你好", "再见"),
        ("a", "b"),
    ):
        for language in ("English", "Spanish", "Chinese", "Hindi"):
            with case(personas, language):
                assert all(re.compile(pattern).search("") is None for pattern in narration_of(*personas, language))
        assert re.fullmatch(r"[a-z0-9][a-z0-9-]*", name_of(*personas)), personas
    assert name_of(*LOVE) == "love-care-not-scorn"
    assert name_of("You love people.", "You do not.").startswith("love-")
    assert name_of("你好", "再见") != name_of("你好", "再会")
