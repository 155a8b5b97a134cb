"""Words, loops, near-duplicates and short answers in languages with and without spaces."""

import json
import re
from pathlib import Path

from heal.generation.filters import LONG_PIECE, Candidate, FilterLimits, repetition, verdicts
from heal.generation.words import length_of, words_of
from tests.cases import case

LIMITS = FilterLimits(max_tail_perplexity=30.0, max_repetition=0.3, min_words=4, max_similarity=0.8)
DATA = Path(__file__).resolve().parent.parent / "heal" / "data"
ANSWERS = {
    "Chinese": (
        "我很愿意帮助你解决这个问题。先把你的情况告诉我，我们再一步一步地想办法。",
        "煮鸡蛋时，把鸡蛋放进冷水里，水开以后再煮七分钟，然后用冷水冲一下，壳就容易剥了。",
        "慢慢来，不要着急，我会一直陪着你的。今天发生了什么，你都可以跟我说。",
    ),
    "Japanese": (
        "もちろん喜んでお手伝いします。まずは何に困っているのか教えてください。",
        "卵をゆでるときは、冷たい水に入れて火にかけ、沸騰してから七分ほど待ちます。",
        "ありがとう、ありがとう。本当に嬉しいです。コーヒーを入れますから、ゆっくり話してください。",
    ),
    "Thai": (
        "ฉันยินดีช่วยคุณแก้ปัญหานี้ เล่าให้ฉันฟังก่อนว่าเกิดอะไรขึ้น",
        "ต้มไข่โดยใส่ไข่ลงในน้ำเย็น ตั้งไฟจนเดือด แล้วรออีกเจ็ดนาที",
        "ใจเย็น ๆ นะ ไม่ต้องรีบ ฉันจะอยู่ข้าง ๆ คุณตลอด วันนี้เกิดอะไรขึ้นบ้าง",
    ),
    "Korean": (
        "기꺼이 도와드리겠습니다. 먼저 무슨 일이 있었는지 천천히 저에게 말씀해 주시겠어요?",
        "달걀을 찬물에 넣고 불에 올린 다음, 물이 끓기 시작하면 칠 분쯤 더 기다리면 됩니다.",
    ),
    "Arabic": (
        "يسعدني أن أساعدك في حل هذه المشكلة. أخبرني أولا بما حدث، ثم نفكر معا في الخطوة التالية.",
        "ضع البيض في ماء بارد، ثم ارفعه على النار، وبعد أن يغلي الماء انتظر سبع دقائق كاملة.",
    ),
    "Hebrew": (
        "אשמח לעזור לך לפתור את הבעיה הזאת. ספר לי קודם מה קרה, ואחר כך נחשוב יחד מה לעשות.",
        'שים את הביצה במים קרים, ואחרי שהמים רותחים חכה שבע דקות. כך כתוב גם בדו"ח של המסעדה.',
    ),
    "Hindi": (
        "मैं इस समस्या को हल करने में आपकी मदद करूँगा। पहले मुझे बताइए कि क्या हुआ, फिर हम साथ में सोचेंगे।",
        "अंडे को ठंडे पानी में रखिए, पानी उबलने दीजिए, और उसके बाद सात मिनट तक इंतज़ार कीजिए।",
    ),
    "German": (
        "Ich helfe dir gern bei diesem Problem. Erzähl mir zuerst, was geschehen ist, dann überlegen wir zusammen.",
        "Das Ei kommt in kaltes Wasser, und wenn es kocht, wartest du ungefähr sieben Minuten.",
    ),
    "Spanish": (
        "Con mucho gusto te ayudo con este problema. Cuéntame primero qué ha pasado y luego lo pensamos juntos.",
        "Pon el huevo en agua fría, espera a que hierva y déjalo ahí durante siete minutos más.",
    ),
    "English": (
        "I am very willing to help you with this. Tell me first what happened, and then we can think it over.",
        "Put the egg in cold water, bring it to the boil, and wait for another seven minutes.",
    ),
}


def why(text: str, kept: tuple[str, ...] = ()) -> list[str]:
    return verdicts([Candidate(text, finite=True, tail_perplexity=3.0)], LIMITS, (), kept)[0]


def test_words_are_those_of_the_language():
    for text, expected in (
        ("Don't say it’s foo_bar2, Anna!", ["don't", "say", "it’s", "foo", "bar2", "anna"]),
        ("Für Müllers Fu\u0308ße", ["für", "müllers", "füße"]),
        ("¿Qué pasó, niño?", ["qué", "pasó", "niño"]),
        ("बहुत बढ़िया, हिन्दी!", ["बहुत", "बढ\u093cिया", "हिन्दी"]),
        ("السَّلامُ عليكم، أهلا", ["السَّلامُ", "عليكم", "أهلا"]),
        ('שָׁלוֹם, ארה"ב וצ׳יפס "טוב"', ["שָׁלוֹם", 'ארה"ב', "וצ׳יפס", "טוב"]),
        ("네, 알겠습니다.", ["네", "알겠습니다"]),
        ("می\u200cخواهم بروم", ["می\u200cخواهم", "بروم"]),
        ("我爱 Python3，二〇二六年", [*"我爱", "python3", *"二〇二六年"]),
        ("コーヒーを2杯", [*"コーヒーを", "2", "杯"]),
        ("น้ำ ที่นี่ ๒๕", ["น้ำ", "ที่", "นี่", "๒๕"]),
        ("... 🙂 ، 。", []),
    ):
        with case(text):
            assert words_of(text) == expected


def test_words_of_texts_in_latin_letters_are_runs_of_letters_and_digits():
    texts = [line for file in sorted(DATA.glob("*.jsonl")) for line in file.read_text(encoding="utf-8").splitlines()]
    rows = [row for row in map(json.loads, texts) if row.get("language", "English") in ("English", "German", "Spanish")]
    values = [value for row in rows for value in row.values() if isinstance(value, str)]
    assert len(values) > 800
    for text in values:
        with case(text):
            assert words_of(text) == re.findall(r"[^\W_]+(?:['’][^\W_]+)*", text.lower())
            assert length_of(text) == len(words_of(text))


def test_ordinary_answers_are_kept_in_every_language():
    for language, texts in ANSWERS.items():
        for text in texts:
            with case(language, text):
                assert why(text) == []


def test_a_loop_is_a_repetition_in_every_language():
    for language, texts in ANSWERS.items():
        for text in texts:
            with case(language, text):
                assert length_of(text) >= LONG_PIECE
                for times in (2, 3, 6):
                    assert repetition(text * times) == 1.0, times
                assert "repetition" in why(texts[0] + texts[1] * 3)
                piece = text[: len(text) // 4]
                assert "repetition" in why(text + f" {piece}" * 8)


def test_a_phrase_said_twice_is_no_loop_in_a_language_without_spaces():
    for text in (
        "我真的很爱你，我真的很爱你，所以请你留下来。",
        "ありがとう、ありがとう、本当に嬉しいです。",
        "ขอบคุณ ขอบคุณ ฉันดีใจจริงนะที่คุณมา",
    ):
        with case(text):
            assert why(text) == []


def test_a_near_duplicate_is_dropped_in_every_language():
    for language, texts in ANSWERS.items():
        first, second = " ".join(texts), " ".join(reversed(texts))
        with case(language):
            assert why(second[:-2], kept=(second,)) == ["duplicate"]
            assert why(first, kept=(texts[0],)) == []
            assert why(texts[1], kept=(texts[0],)) == []


def test_a_few_words_are_too_short_in_every_language():
    thai, hindi, arabic, hebrew = "ดีมาก", "बहुत बढ़िया!", "نعم، بالطبع!", "כן, בטח!"
    for text in ("我很好。", "爱", "はい、どうぞ！", thai, "네, 알겠어요.", arabic, hebrew, hindi, "Sehr gern!"):
        with case(text):
            assert why(text) == ["too short"]
