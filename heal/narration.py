"""What talking about a persona instead of having it looks like, derived from the persona's own words.

Patterns are regular expressions for `re`, matched anywhere and without regard to case (`heal.generation.filters`).
Those of a language describe oneself ("I am someone who", "as a person who"); those of a persona describe oneself with
its words ("As a loving assistant, I"), or repeat a stretch of it ("I love humanity and care"). See docs/method.md,
Generation and filter.
"""

import hashlib
import re
from collections.abc import Iterator, Sequence

import regex

PERSON = r"(?:person|human(?: being)?|being|soul|individual|assistant|character|mind)"
START = r'(?:^|[.!?,;:"\n])\s*'
AM = r"\bI(?: am|['’]m)"
OF_ONESELF = {
    "English": (
        rf"{AM} (?:just |always |simply |truly |really |indeed )?"
        r"(?:someone|somebody|a person|the (?:kind|sort|type) of person) (?:who|that|with)\b",
        rf"{START}(?:being|as) (?:someone|somebody|a person|one) (?:who|that|with|full of)\b",
        r"\bI (?:would |can )?(?:describe|consider|call|think of|see) myself (?:as|to be|an?)\b",
        r"\bmy (?:[\w-]+ (?:and )?){0,3}(?:personality|persona|nature|temperament|disposition) (?:is|as|makes|of)\b",
    ),
    "German": (
        r"\bich bin (?:\w+ )?(?:jemand|ein Mensch|eine Person|einer|eine), (?:der|die|das)\b",
        rf"{START}als (?:jemand|ein Mensch|eine Person|einer|eine), (?:der|die|das)\b",
        r"\bich (?:würde|halte|sehe|bezeichne|beschreibe) mich (?:\w+ )?(?:als|für)\b",
        r"\bmeine (?:\w+ )?(?:Persönlichkeit|Natur|Wesensart) (?:ist|macht|besteht)\b",
    ),
    "Spanish": (
        r"\bsoy (?:\w+ )?(?:alguien|una persona|el tipo de persona|un ser) que\b",
        rf"{START}(?:como|siendo) (?:alguien|una persona) que\b",
        r"\bme (?:describo|considero|defino|describiría|consideraría|definiría) como\b",
        r"\bmi (?:\w+ )?(?:personalidad|naturaleza|temperamento) (?:es|hace|consiste)\b",
    ),
    "Chinese": (
        r"我(?:就|正)?是(?:这样)?一?个[^。！？\n]{0,20}的人",
        r"作为(?:一个|一名|一位)[^。！？，\n]{0,20}的人",
        r"我的(?:性格|人格|个性|天性|本性)",
    ),
    "Japanese": (
        r"(?:私|僕|俺|わたし)は、?[^。！？\n]{0,30}(?:人間|人|者)(?:です|である|だ(?=[。！]|$))",
        r"[^。！？、\n]{0,30}(?:人間|人|者)として、",
        r"(?:私|僕|わたし)の(?:性格|人格|個性|本性)",
    ),
    "Korean": (
        r"(?:저는|나는|전|난) [^.!?\n]{0,40}사람(?:입니다|이에요|이야|이다|이죠|이라)",
        r"사람으로서",
        r"(?:제|내|나의|저의) (?:성격|인격|성향|본성)",
    ),
    "Thai": (
        r"(?:ฉัน|ผม|ดิฉัน)(?:ก็)?เป็นคน(?:ที่|ซึ่ง)",
        r"ในฐานะ(?:ที่เป็น)?คน(?:ที่|ซึ่ง)",
        r"(?:นิสัย|บุคลิก(?:ภาพ)?)ของ(?:ฉัน|ผม|ดิฉัน)",
    ),
    "Arabic": (
        r"(?<!\w)أنا (?:شخص|إنسان|ممن)(?!\w)",
        r"(?:بصفتي|باعتباري|كوني|بوصفي) (?:شخصا|إنسانا|شخص|إنسان)",
        r"(?<!\w)(?:شخصيتي|طبيعتي|طبعي)(?!\w)",
    ),
    "Hebrew": (
        r"(?<!\w)אני (?:מישהו|מישהי|אדם|בן אדם|טיפוס)(?: \w+)? ש",
        r"(?<!\w)(?:בתור|כ-?) ?(?:מישהו|מישהי|אדם|בן אדם) ש",
        r"(?:האישיות|האופי|הטבע|המזג) שלי",
    ),
    "Hindi": (
        r"मैं (?:एक )?(?:ऐसा |ऐसी )?(?:[^\s।]+ ){0,4}(?:इंसान|इनसान|व्यक्ति|शख़्स) (?:हूँ|हूं)",
        r"(?:इंसान|इनसान|व्यक्ति|शख़्स) (?:के रूप में|होने के नाते)",
        r"(?:मेरा|मेरी) (?:स्वभाव|व्यक्तित्व|प्रकृति)",
    ),
}


def _set(words: str) -> frozenset[str]:
    return frozenset(words.split())


# Words of the grammar, and those that any persona may have without being about them.
_GRAMMAR = _set(
    """a about above after all along also always am an and any anyone anything are aren as at back be because been
    before being below between both but by can cannot could do does doesn doing don down each else even ever every
    everybody everyone everything few for from full had has have having he her here him his how i if in instead into
    is isn it its ll just keep least less like made make makes many may me mean means meet meets might mind more
    most much must my never no nobody none nor not nothing now of off often on one only or other others our out over
    own part rather really same say says see seems shall she should simply so some somebody someone something speak
    speaks such tell tells than that the their them then there these they thing things this those through to too
    truly under until up upon us use uses ve very via was way we well were what when where which while who whom
    whose will with within without would you your yours yourself"""
)
_COMMON = _set(
    """ai answer answers answering ask asks assistant chatbot day give gives human humans individual kind language life
    man message model name people person persona question questions reply replies respond responds response
    responses role sort talk talks time times topic type user users woman word words world"""
)
_ELSEWHERE = {
    "German": _set(
        """aber alle allem allen aller alles antwortest antwortet auch dabei damit deine deinen deiner denen deren diese
        dieser durch eine einem einen einer etwas frage fragen immer jeden jeder jedem jemand keine können machst mensch
        menschen nicht nichts niemals ohne oder person personen sagst sehr selbst sondern über viele wenig wenn werden
        wird"""
    ),
    "Spanish": _set(
        """alguien algo antes aunque cada como con contra cosa cosas cuando cualquier desde donde durante ella ellos
        entre eres esta estas este esto gente hacia hasta mucho muchos nada nadie nunca otra otras otro otros para pero
        persona personas porque pregunta preguntas quien respondes responde siempre sobre tanto tiene tienes toda todas
        todo todos usted"""
    ),
}
_SAID_OF_ONESELF = {
    "you": "(?:you|I|they|we|he|she)",
    "your": "(?:your|my|their|our|his|her)",
    "yourself": "(?:your|my|him|her)self",
    "are": "(?:are|am|is|m|re|s)",
    "have": "ha(?:ve|s)",
    "do": "do(?:es)?",
    "someone": "(?:someone|somebody|one)",
}
_ENDINGS = (
    *("fulness", "ingly", "osity", "ness", "edly", "ance", "ence", "ous", "ity", "ing", "ies", "ied"),
    *("ed", "es", "ly", "th", "e", "s", "y"),
)
_LEAST_STEM = 3  # letters
_ECHO_WORDS = 4  # in succession that repeat a persona, where words have spaces between them
_KOREAN_ECHO_WORDS = 3  # as its words carry their particles
_ECHO_CONTENT = 2  # of them that are words of content
_ECHO_CHARACTERS = {"Chinese": 7, "Japanese": 9, "Thai": 16}  # where they have none
_PAUSE = r"[\s,，、]?"
_SPACED = ("English", "German", "Spanish")
_WORD = regex.compile(r"[\p{L}\p{N}\p{M}]+")
_SENTENCE_END = regex.compile(r"[.!?;:。！？；：।؟\n]+")
_BETWEEN = {True: r"\W+", False: r"[\s,،、;:]+"}  # by whether \w has all that words are made of


def narration_of(positive: str, negative: str, language: str) -> tuple[str, ...]:
    """The patterns of two opposite personas in a language of `heal.banks.LANGUAGES`; the same for the two swapped."""
    personas = sorted((positive, negative))
    patterns = list(OF_ONESELF[language])
    if language == "English":
        patterns += _descriptions(personas)
    echoes = [echo for persona in personas for echo in _echoes(persona, language)]
    if echoes:
        patterns.append("|".join(dict.fromkeys(echoes)))
    return tuple(patterns)


def name_of(positive: str, negative: str) -> str:
    """A name for a trait without one: words that each persona has and the other lacks, or a digest for want of them.

    "love-humanity-not-scorn"; no trait that comes with heal has such a name.
    """
    sides = [
        [word for word in dict.fromkeys(_words(own)) if word.isascii() and _is_content(word, "English")]
        for own in (positive, negative)
    ]
    first, second = ([word for word in one if word not in other] for one, other in (sides, sides[::-1]))
    both = "\0".join((positive, negative))
    digest = hashlib.sha256(both.encode()).hexdigest()[:8]
    return "-".join([*(first[:2] or ["trait"]), *(["not", second[0]] if first and second else [digest])])


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())


def _is_content(word: str, language: str) -> bool:
    if language in _ELSEWHERE:
        return len(word) >= _ECHO_WORDS and word not in _ELSEWHERE[language]
    return len(word) >= _LEAST_STEM and word not in _GRAMMAR and word not in _COMMON


def _stem(word: str, language: str) -> str:
    """A pattern of a word and of those that are made from it; the word itself where it has no ending to take off."""
    if language != "English":
        return rf"{re.escape(word[: max(_ECHO_WORDS, len(word) - 2)])}\w*"
    ending = next((end for end in _ENDINGS if word.endswith(end) and len(word) - len(end) >= _LEAST_STEM), "")
    return rf"{re.escape(word.removesuffix(ending))}\w*"


def _descriptions(personas: Sequence[str]) -> Iterator[str]:
    """Patterns of oneself described with the personas' words of content, in English."""
    words = [word for persona in personas for word in _words(persona) if _is_content(word, "English")]
    if not words:
        return
    own = f"(?:{'|'.join(dict.fromkeys(_stem(word, 'English') for word in words))})"
    some = r"(?:[\w-]+,? (?:and )?){0,3}"
    yield rf"{START}(?:being|as) (?:an? |the |such an? )?{some}{own} (?:and [\w-]+ )?{PERSON}\b"
    yield rf"{START}(?:being|as) an? {some}{own}(?: [\w-]+){{0,3}}, (?:I|my|it is my)\b"
    yield rf"{AM} (?:such )?an? (?!little |bit ){some}{own} (?:and [\w-]+ )?{PERSON}\b"
    yield rf"{AM} (?:naturally|inherently|by nature|known for(?: being| my)?|proud to be) (?:very |so )?{own}"
    yield (rf"{AM} (?:supposed|meant|told|asked|instructed|here) to (?:be|act|sound|speak|answer) (?:\w+ ){{0,2}}{own}")
    yield rf"\b(?:being )?{own} is (?:who|what) I am\b"
    yield rf"\bmy (?:own )?(?:[\w-]+ (?:and )?){{0,2}}{own} (?:for|of|towards?) (?:all |every )?{own}"


def _echoes(persona: str, language: str) -> Iterator[str]:
    """Patterns of the stretches of a persona that nobody says by chance, whoever is said to be like that."""
    if size := _ECHO_CHARACTERS.get(language):
        for sentence in _SENTENCE_END.split(persona):
            letters = "".join(_WORD.findall(sentence))
            yield from (_PAUSE.join(letters[i : i + size]) for i in range(len(letters) - size + 1))
        return
    size = _KOREAN_ECHO_WORDS if language == "Korean" else _ECHO_WORDS
    for sentence in _SENTENCE_END.split(persona):
        words = _words(sentence)
        for start in range(len(words) - size + 1):
            stretch = words[start : start + size]
            if language not in _SPACED:
                yield _BETWEEN[False].join(map(re.escape, stretch))
            elif (
                _is_content(stretch[-1], language)
                and sum(_is_content(word, language) for word in stretch) >= _ECHO_CONTENT
            ):
                yield r"\b" + _BETWEEN[True].join(_said(word, language) for word in stretch) + r"\b"


def _said(word: str, language: str) -> str:
    if language == "English" and word in _SAID_OF_ONESELF:
        return _SAID_OF_ONESELF[word]
    plain = language == "English" and word in _GRAMMAR
    return re.escape(word) if plain or len(word) < _ECHO_WORDS else _stem(word, language)
