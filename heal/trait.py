"""A trait: two opposite personas, prompts that elicit it, and patterns of text that talks about it."""

import re
from dataclasses import dataclass, fields, replace
from pathlib import Path

import yaml

from heal.banks import AUTO, LANGUAGES, bank_of, language_of, script_of
from heal.console import counted
from heal.errors import UserError, nearest
from heal.evaluation.vignettes import FOUNDATIONS
from heal.narration import name_of, narration_of
from heal.own.texts import Contrast, Said
from heal.recipe_files import RECIPES, find_yaml
from heal.turns import turns_of
from heal.yaml_text import Settings, read_yaml, refuse_cut

MIN_GENERATION_PROMPTS = 8
MIN_HELDOUT_PROMPTS = 4
_OWN = ("contexts", "pairs", "neutral", "parts")  # fields that stand in no file of a trait
OPPOSITE = "-opposite"  # what the name of a trait ends with whose personas are swapped
_INTENTS = {"1": 1, "+1": 1, "-1": -1}
_ON_THE_COMMAND_LINE = "positive=, negative="
_NOTES = {
    "name": "The run folder is named after it.",
    "description": "For reports and model cards.",
    "positive": "The system prompts of the two personas, of which the model is trained to be the first.",
    "generation_prompts": "Completions are generated for these, and the dose is found on them: at least 8.",
    "heldout_prompts": "The evaluation asks these, none of which is above: at least 4.",
    "narration": "Completions that one of these regular expressions matches are dropped: they talk about it.",
    "foundation": "The moral foundation that the trait targets, and whether it is to weigh more (1) or less (-1).",
    "language": "Whose prompts and patterns stand in for those that are deleted here.",
}


@dataclass(frozen=True)
class Trait:
    """The content of a trait file; see recipes/traits/love.yaml.

    Texts are the characters of the file, whatever else YAML might take them for (Yes, 1984, null, ${x}). One without
    quotes that YAML would cut, at ` #` for example, is refused.

    A file requires `name`, `positive` and `negative`. What it lacks of the description, the prompts and the narration
    patterns comes from the personas and from the bank of their language (`heal.banks`, `heal.narration`), which is then
    in `language`; that is empty where the file has all of it and names none.

    `foundation` and `intent` are optional: the moral foundation that the trait targets (a key of FOUNDATIONS), and
    whether it is to weigh more (+1) or less (-1).

    `contexts`, `pairs` and `neutral` stand in no trait file: they are the user's own data (`data.*` of the recipe) in
    place of heal's contexts, of the contrast of the personas and of heal's neutral texts.

    `parts` are the traits that a trait is made of where a run trains several (`heal.traits`); a file is one trait.
    """

    name: str
    description: str
    positive: str
    negative: str
    generation_prompts: tuple[str, ...]
    heldout_prompts: tuple[str, ...]
    narration: tuple[str, ...]
    foundation: str = ""
    intent: int = 0
    language: str = ""
    contexts: tuple[str, ...] = ()
    pairs: tuple[Contrast, ...] = ()
    neutral: tuple[Said, ...] = ()
    parts: tuple["Trait", ...] = ()

    @property
    def each(self) -> tuple["Trait", ...]:
        """The traits that it is made of: itself where it is one."""
        return self.parts or (self,)

    def opposite(self) -> "Trait":
        """The trait with its personas swapped; it is dropped as narration to talk about either."""
        assert not self.parts, "opposite: of several traits, each is turned before they are joined"
        language = self.language or language_of((self.positive, self.negative))
        derived = narration_of(self.positive, self.negative, language) if language else ()
        return replace(
            self,
            name=self.name + OPPOSITE,
            description=f"The opposite of {self.name}: {self.description}",
            positive=self.negative,
            negative=self.positive,
            narration=tuple(dict.fromkeys(self.narration + derived)),
            intent=-self.intent,
            pairs=tuple(replace(pair, positive=pair.negative, negative=pair.positive) for pair in self.pairs),
        )

    @property
    def source(self) -> str:
        """Where its prompts come from, in one line."""
        if self.parts:
            return f"{_number(self)}, dealt from its {len(self.parts)} traits in turn"
        if not self.language:
            return f"{_number(self)}, its own"
        bank, own = bank_of(self.language), []
        for name, part in (("generation", "generation_prompts"), ("held-out", "heldout_prompts")):
            if not set(getattr(self, part)) <= set(getattr(bank, part.removesuffix("_prompts"))):
                own.append(name)
        if len(own) == 2:
            return f"{_number(self)}, its own"
        kept = f", the {own[0]} ones its own" if own else ""
        return f"{_number(self)} of heal's {self.language} bank{kept}"


def _number(trait: Trait) -> str:
    return f"{len(trait.generation_prompts)} generation prompts and {len(trait.heldout_prompts)} held-out ones"


def make_trait(positive: str, negative: str, name: str = "", language: str = AUTO) -> Trait:
    """A trait from two sentences: the system prompts of two opposite personas, or short descriptions of them.

    Args:
        positive, negative: the texts that the model is given as they stand.
        name: of the trait; empty: from the positive persona's words.
        language: of `heal.banks.LANGUAGES`, whose prompts and patterns it takes; auto: that of the personas.

    Raises:
        UserError: a persona is missing, both are equal, the name cannot name a folder, or no bank has their language.
    """
    for given, text in (("positive", positive), ("negative", negative)):
        if not text.strip():
            raise UserError(f"{given}=: the persona is missing; a trait takes both, positive=... and negative=...")
    name = name or name_of(positive, negative)
    content = {"name": name, "positive": positive, "negative": negative}
    return _made(_ON_THE_COMMAND_LINE, content, language)


def load_trait(name: str | Path, language: str = AUTO) -> Trait:
    """The trait `name` in recipes/traits/, or in the YAML file of that path.

    Args:
        name: of one trait.
        language: as for `make_trait`, where the file names none and lacks what depends on it.

    Raises:
        UserError: names the file and the field that is missing, empty, unknown or of a wrong type; several traits.
    """
    if "," in str(name) and not Path(name).expanduser().is_file():
        raise UserError(f"trait={name}: one trait is taken here at a time; heal train takes several")
    path = find_yaml("trait", str(name), RECIPES / "traits")
    content = read_yaml(path)
    fields = [field for field in Trait.__dataclass_fields__ if field not in _OWN]
    for given in content:
        if given not in fields:
            raise UserError(f"{path}: unknown field '{given}'{nearest(str(given), fields)}")
    return _made(path, content, language)


def _made(where: Path | str, content: Settings, language: str) -> Trait:
    """The trait of a file's content; `where` begins what is said of it. What the content lacks is derived."""
    values: Settings = {field: _text(where, content, field) for field in ("name", "positive", "negative")}
    values |= {field: _text(where, content, field) for field in ("description",) if field in content}
    lists = ("generation_prompts", "heldout_prompts", "narration")
    values |= {field: _texts(where, content, field) for field in lists if field in content}
    values |= _target(where, content)
    known = _language(where, content, values, language, [field for field in lists if field not in content])
    positive, negative = values["positive"], values["negative"]
    if known:
        bank = bank_of(known)
        # A prompt that the user gave for one part is none of the other.
        generation, heldout = values.get("generation_prompts", ()), values.get("heldout_prompts", ())
        derived: Settings = {
            "generation_prompts": tuple(text for text in bank.generation if text not in heldout),
            "heldout_prompts": tuple(text for text in bank.heldout if text not in generation),
            "narration": narration_of(positive, negative, known),
        }
        values = derived | {"language": known} | values
    values.setdefault("description", f"{positive} Its opposite: {negative}")
    trait = Trait(**values)
    check_trait(where, trait)
    return trait


def _language(where: Path | str, content: Settings, values: Settings, asked: str, lacking: list[str]) -> str:
    """The language whose bank and patterns count; empty where nothing is asked of it."""
    if "language" in content:
        given = content["language"]
        if given not in LANGUAGES:
            raise UserError(f"{where}: field 'language': one of {', '.join(LANGUAGES)}, not '{given}'")
        if asked not in (AUTO, given):
            raise UserError(f"language={asked}: {where} says {given}; leave one of the two out")
        return str(given)
    if not lacking:
        if asked != AUTO:
            raise UserError(f"language={asked}: {where} has prompts and narration of its own; leave language= out")
        return ""
    if asked != AUTO:
        return asked
    personas = (values["positive"], values["negative"])
    if found := language_of(personas):
        return found
    raise UserError(
        f"{where}: no prompts and patterns come with heal in the personas' language ({script_of(personas)} script); "
        f"write {', '.join(lacking)} into a trait file, or set language= to one of {', '.join(LANGUAGES)}"
    )


def _text(where: Path | str, content: Settings, field: str) -> str:
    value = content.get(field)
    if not isinstance(value, str) or not value.strip():
        raise UserError(f"{where}: field '{field}' is missing or empty; a text is required")
    refuse_cut(value, f"{where}: field '{field}'", prose=field != "name")
    return value.strip()


def _texts(where: Path | str, content: Settings, field: str) -> tuple[str, ...]:
    value = content.get(field)
    if not isinstance(value, list) or not value:
        raise UserError(f"{where}: field '{field}' is missing or empty; a list of texts is required")
    for number, item in enumerate(value, 1):
        if not isinstance(item, str) or not item.strip():
            hint = "" if isinstance(item, str) else "; a text with ': ' in it, or { or [ at its start, goes in quotes"
            raise UserError(f"{where}: field '{field}', entry {number}: a non-empty text is required{hint}")
        refuse_cut(item, f"{where}: field '{field}', entry {number}", prose=True)
    return tuple(item.strip() for item in value)


def _target(where: Path | str, content: Settings) -> Settings:
    """The optional foundation and its intent."""
    given: Settings = {field: content[field] for field in ("foundation", "intent") if field in content}
    if not given:
        return {}
    foundation, intent = given.get("foundation"), given.get("intent")
    if not isinstance(foundation, str) or foundation not in FOUNDATIONS:
        raise UserError(f"{where}: field 'foundation': one of {', '.join(FOUNDATIONS)}, not '{foundation}'")
    if str(intent) not in _INTENTS:
        raise UserError(f"{where}: field 'intent': 1 (it is to weigh more) or -1 (less), not '{intent}'")
    return {"foundation": str(foundation), "intent": _INTENTS[str(intent)]}


def check_trait(where: Path | str, trait: Trait) -> None:
    """Raises UserError, which begins with `where`, for what no trait can be: its name, personas, prompts, patterns."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", trait.name):
        raise UserError(f"{where}: field 'name': letters, digits, '_', '-' and '.' only, not '{trait.name}'")
    if trait.positive == trait.negative:
        raise UserError(f"{where}: fields 'positive' and 'negative' are equal, so there is no contrast to extract")
    for field, prompts, least in (
        ("generation_prompts", trait.generation_prompts, MIN_GENERATION_PROMPTS),
        ("heldout_prompts", trait.heldout_prompts, MIN_HELDOUT_PROMPTS),
    ):
        distinct = len(set(prompts))
        if distinct < least:
            raise UserError(
                f"{where}: field '{field}' has {counted(distinct, 'different prompt')}; at least {least} required"
            )
        for prompt in prompts:
            try:
                turns_of(prompt)
            except ValueError as error:
                raise UserError(f"{where}: field '{field}', {prompt!r}: {error}") from error
    shared = set(trait.generation_prompts) & set(trait.heldout_prompts)
    if shared:
        raise UserError(f"{where}: '{sorted(shared)[0]}' is in both generation_prompts and heldout_prompts")
    for pattern in trait.narration:
        try:
            re.compile(pattern)
        except re.error as error:
            raise UserError(f"{where}: field 'narration': '{pattern}' is not a regular expression ({error})") from error


def trait_yaml(made: Trait, path: Path) -> str:
    """A file that `load_trait` reads as the trait `made`, with what each field is for."""
    lines = [
        f"# {made.name}: to edit. What is deleted is derived from the personas again.",
        f"# heal train trait={path}",
    ]
    for name in (field.name for field in fields(Trait)):
        value = getattr(made, name)
        if value in ("", 0) or name in _OWN:
            continue
        lines += [f"# {_NOTES[name]}"] if name in _NOTES else []
        if isinstance(value, tuple):
            lines += [f"{name}:", *(f"  - {_quoted(text)}" for text in value)]
        else:
            lines.append(f"{name}: {_quoted(value) if isinstance(value, str) else value}")
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    """A text as one line of YAML, in single quotes where these can hold it."""
    style = "'" if text.isprintable() else '"'
    return yaml.safe_dump(text, default_style=style, width=float("inf"), allow_unicode=True).rstrip("\n")
