"""A trait: two opposite personas, prompts that elicit it, and patterns of text that talks about it."""

import re
from dataclasses import dataclass
from pathlib import Path

from heal.console import counted
from heal.errors import UserError, nearest
from heal.evaluation.vignettes import FOUNDATIONS
from heal.recipe import RECIPES, find_yaml
from heal.yaml_text import Settings, read_yaml, refuse_cut

MIN_GENERATION_PROMPTS = 8
MIN_HELDOUT_PROMPTS = 4
_INTENTS = {"1": 1, "+1": 1, "-1": -1}


@dataclass(frozen=True)
class Trait:
    """The content of a trait file; see recipes/traits/love.yaml.

    Texts are the characters of the file, whatever else YAML might take them for (Yes, 1984, null, ${x}). One without
    quotes that YAML would cut, at ` #` for example, is refused.

    `foundation` and `intent` are optional: the moral foundation that the trait targets (a key of FOUNDATIONS), and
    whether it is to weigh more (+1) or less (-1).
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


def load_trait(name: str | Path) -> Trait:
    """The trait `name` in recipes/traits/, or in the YAML file of that path.

    Raises:
        UserError: names the file and the field that is missing, empty, unknown or of a wrong type.
    """
    path = find_yaml("trait", str(name), RECIPES / "traits")
    content = read_yaml(path)
    fields = list(Trait.__dataclass_fields__)
    for given in content:
        if given not in fields:
            raise UserError(f"{path}: unknown field '{given}'{nearest(str(given), fields)}")
    values: Settings = {field: _text(path, content, field) for field in fields[:4]}
    values |= {field: _texts(path, content, field) for field in fields[4:7]}
    trait = Trait(**values, **_target(path, content))
    _check(path, trait)
    return trait


def _text(path: Path, content: Settings, field: str) -> str:
    value = content.get(field)
    if not isinstance(value, str) or not value.strip():
        raise UserError(f"{path}: field '{field}' is missing or empty; a text is required")
    refuse_cut(value, f"{path}: field '{field}'", prose=field != "name")
    return value.strip()


def _texts(path: Path, content: Settings, field: str) -> tuple[str, ...]:
    value = content.get(field)
    if not isinstance(value, list) or not value:
        raise UserError(f"{path}: field '{field}' is missing or empty; a list of texts is required")
    for number, item in enumerate(value, 1):
        if not isinstance(item, str) or not item.strip():
            hint = "" if isinstance(item, str) else "; a text with ': ' in it, or { or [ at its start, goes in quotes"
            raise UserError(f"{path}: field '{field}', entry {number}: a non-empty text is required{hint}")
        refuse_cut(item, f"{path}: field '{field}', entry {number}", prose=True)
    return tuple(item.strip() for item in value)


def _target(path: Path, content: Settings) -> Settings:
    """The optional foundation and its intent."""
    given: Settings = {field: content[field] for field in ("foundation", "intent") if field in content}
    if not given:
        return {}
    foundation, intent = given.get("foundation"), given.get("intent")
    if not isinstance(foundation, str) or foundation not in FOUNDATIONS:
        raise UserError(f"{path}: field 'foundation': one of {', '.join(FOUNDATIONS)}, not '{foundation}'")
    if str(intent) not in _INTENTS:
        raise UserError(f"{path}: field 'intent': 1 (it is to weigh more) or -1 (less), not '{intent}'")
    return {"foundation": str(foundation), "intent": _INTENTS[str(intent)]}


def _check(path: Path, trait: Trait) -> None:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", trait.name):
        raise UserError(f"{path}: field 'name': letters, digits, '_', '-' and '.' only, not '{trait.name}'")
    if trait.positive == trait.negative:
        raise UserError(f"{path}: fields 'positive' and 'negative' are equal, so there is no contrast to extract")
    for field, prompts, least in (
        ("generation_prompts", trait.generation_prompts, MIN_GENERATION_PROMPTS),
        ("heldout_prompts", trait.heldout_prompts, MIN_HELDOUT_PROMPTS),
    ):
        distinct = len(set(prompts))
        if distinct < least:
            raise UserError(
                f"{path}: field '{field}' has {counted(distinct, 'different prompt')}; at least {least} required"
            )
    shared = set(trait.generation_prompts) & set(trait.heldout_prompts)
    if shared:
        raise UserError(f"{path}: '{sorted(shared)[0]}' is in both generation_prompts and heldout_prompts")
    for pattern in trait.narration:
        try:
            re.compile(pattern)
        except re.error as error:
            raise UserError(f"{path}: field 'narration': '{pattern}' is not a regular expression ({error})") from error
