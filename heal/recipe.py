"""Reads a recipe: defaults, then its scale's numbers, its YAML, `key=value` words; errors name the nearest key."""

import math
import re
from collections.abc import Sequence
from copy import deepcopy
from functools import reduce
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from heal.adapter_kinds import ADAPTER_KINDS, foldable
from heal.config import AS_DEFAULT, Recipe
from heal.errors import UserError, nearest
from heal.keys import Key, keys, keys_by_name
from heal.narration import name_of
from heal.recipe_files import RECIPES, find_yaml
from heal.scale import AUTO, Scale, resolved, sized_keys, sizes_of
from heal.yaml_text import Plain, Settings, flatten, parse, read_yaml, refuse_cut, typed_text

_NOT_IN_A_PROJECT = "/\\#?%:"  # characters that W&B refuses there
_NOT_FINITE = {".nan": "nan", ".inf": "inf", "+.inf": "inf", "-.inf": "-inf"}  # YAML's spellings


def load_recipe(words: Sequence[str]) -> Recipe:
    """The recipe that the command line `words` (`key=value`) ask for; its scale may still be `auto` (see `sized`).

    Raises:
        UserError: unknown recipe or key, wrong type, value out of range.
    """
    overrides = parse_words(words)
    name = str(overrides.get("recipe", Recipe().recipe))
    path = find_yaml("recipe", name, RECIPES)
    config = OmegaConf.structured(Recipe)
    layers = (*_layers(path), ("on the command line", overrides))
    for source, settings in layers:
        for dotted, value in settings.items():
            set_key(config, dotted, value, source)
    by_scale = sized_keys().difference(*(settings for _, settings in layers))
    if any("heal.batch_size" in settings for _, settings in layers):
        by_scale -= {"heal.accumulation"}  # so many completions are a step, unless somebody says how often
    for dotted, value in sizes_of(config.scale).items():
        if dotted in by_scale:
            set_key(config, dotted, value, f"at the scale {config.scale}")
    recipe = OmegaConf.to_object(config)
    assert isinstance(recipe, Recipe)
    recipe.recipe, recipe.by_scale = name, by_scale
    if recipe.positive and recipe.negative and not any("trait" in settings for _, settings in layers):
        recipe.trait = name_of(recipe.positive, recipe.negative)
    check(recipe)
    return recipe


def sized(recipe: Recipe, scale: Scale = AUTO) -> Recipe:
    """A recipe that asks for no scale with the numbers of `scale`, by default those that fit the device; else as it is.

    Raises:
        UserError: see `check`.
    """
    if recipe.scale != AUTO:
        return recipe
    sizes = deepcopy(recipe)
    sizes.scale = resolved(scale)
    usual = at_scale(sizes.scale)
    for name in recipe.by_scale:
        *sections, last = name.split(".")
        setattr(reduce(getattr, sections, sizes), last, getattr(reduce(getattr, sections, usual), last))
    check(sizes)
    return sizes


def at_scale(scale: Scale) -> Recipe:
    """The default of every key at a scale; `auto` has those of `demo`."""
    config = OmegaConf.structured(Recipe)
    for name, value in sizes_of(scale).items():
        set_key(config, name, value, f"at the scale {scale}")
    recipe = OmegaConf.to_object(config)
    assert isinstance(recipe, Recipe)
    return recipe


def _layers(path: Path) -> list[tuple[str, Settings]]:
    """A recipe file's settings, after those of the file that its `include` names (beside it); each with its source."""
    values = read_yaml(path)
    layers = []
    if "include" in values:
        included = path.parent / str(values.pop("include"))
        if not included.is_file():
            raise UserError(f"include in {path}: no such file: {included}")
        inner = read_yaml(included)
        if "include" in inner:
            raise UserError(f"{included}: an included file cannot include another one")
        layers.append((f"in {included}", flatten(inner, str(included))))
    return [*layers, (f"in {path}", flatten(values, str(path)))]


def parse_words(words: Sequence[str]) -> Settings:
    """`key=value` words as a dictionary of dotted keys; values of text keys are what was typed, others are YAML."""
    texts = {item.name for item in keys() if item.takes_text}
    settings: Settings = {}
    for word in words:
        name, equals, text = word.partition("=")
        if not equals or not name:
            raise UserError(f"'{word}': expected key=value; --help lists the keys")
        try:
            settings[name] = typed_text(text) if name in texts or not text else parse(text)
        except (yaml.YAMLError, ValueError) as error:
            raise UserError(f"'{word}': the value is not valid YAML") from error
    return settings


def set_key(config: DictConfig, name: str, value: Any, source: str) -> None:
    """Sets one dotted key after checking its name, type and range; no text in `value` is interpolated."""
    known = keys_by_name()
    if name not in known:
        raise UserError(f"unknown key '{name}' {source}{nearest(name, list(known))}")
    if value == "???":
        raise UserError(f"{name}=??? {source}: stands for a value that is missing; give one, or leave the key out")
    item = known[name]
    said = f"{name}={_one_line(value)} {source}"
    if item.takes_text:
        refuse_cut(value, said)
    if item.takes_texts and isinstance(value, str):
        value = [value]
    item.check_choice(value, said)
    try:
        OmegaConf.update(config, name, _stored(item, value))
        typed = OmegaConf.select(config, name)
        numbers = _numbers(typed) if not item.takes_texts else []
    except (OmegaConfBaseException, TypeError, ValueError) as error:
        raise UserError(f"{said}: expected {item.type_name}, default {item.shown_default}") from error
    item.check_choice(typed, said)
    low, high = item.minimum, item.maximum
    for number in numbers:
        if isinstance(number, float) and not math.isfinite(number):
            raise UserError(f"{said}: out of range, must be a finite number")
        if (low is not None and number < low) or (high is not None and number > high):
            bounds = [f"{sign} {bound:g}" for sign, bound in ((">=", low), ("<=", high)) if bound is not None]
            raise UserError(f"{said}: out of range, must be {' and '.join(bounds)}")


def _one_line(value: Any) -> str:
    return " ".join(str(value).split())


def _stored(item: Key, value: Any) -> Any:
    """`value` as OmegaConf converts it to the type of `item` and to nothing else.

    A scalar without quotes is null only where the key can be, and where nothing was typed; every text has OmegaConf's
    escapes before what would be an interpolation or a missing value.
    """
    if isinstance(value, list | tuple):
        return [_stored(item, part) for part in value]
    if item.auto:
        if value is None or value == "":
            raise ValueError("nothing was given")
        if value == AUTO:
            return None
    if isinstance(value, Plain) and (value == "" or (item.takes_null and value.is_null)):
        return None
    if not isinstance(value, str):
        return value
    text = str(value)
    if item.type == int | bool:  # of a union OmegaConf converts nothing
        return text.lower() == "true" if text.lower() in ("true", "false") else int(text)
    if not (item.takes_text or item.takes_texts):
        text = _NOT_FINITE.get(text.lower(), text)
    return "\\" + text if re.fullmatch(r"\\*\?\?\?", text) else _not_interpolated(text)


def _not_interpolated(text: str) -> str:
    """`text` with OmegaConf's escape of every `${`: the backslashes before it are doubled, and one more is added."""
    return re.sub(r"(\\*)\$\{", r"\1\1\\${", text)


def _numbers(typed: Any) -> list[float]:
    """The numbers in a key's value, which may be one, a list of them, or none; TypeError for another kind of list."""
    if isinstance(typed, Sequence) and not isinstance(typed, str):
        numbers = list(typed)
        if not all(isinstance(number, int | float) for number in numbers):
            raise TypeError("a list of something else than numbers")
        return numbers
    return [typed] if isinstance(typed, int | float) and not isinstance(typed, bool) else []


def check(recipe: Recipe) -> None:
    """What no single key can say.

    Raises:
        UserError: keys that contradict each other, adapter kinds that cannot be folded.
    """
    for name, band in (("steer.band", recipe.steer.band), ("heal.band", recipe.heal.band)):
        if band is not None and band[0] > band[1]:
            raise UserError(f"{name}={list(band)}: the first fraction must not exceed the second")
    if recipe.heal.use_dora:
        raise UserError(f"heal.use_dora=true: {ADAPTER_KINDS['dora'].refused}")
    foldable(recipe.heal.init)
    for there, lacking in (("positive", "negative"), ("negative", "positive")):
        if getattr(recipe, there).strip() and not getattr(recipe, lacking).strip():
            raise UserError(f"{there}= without {lacking}=: a trait is two opposite personas; give both")
    calibration = recipe.calibration
    if calibration.tolerance >= calibration.target:
        raise UserError(
            f"calibration.target={calibration.target:g}: within calibration.tolerance={calibration.tolerance:g} nats "
            "of it next to no dose is on target; set calibration.tolerance smaller"
        )
    judge = recipe.evaluation.judge
    if judge.url and not re.fullmatch(r"https?://[^/\s]+\S*", judge.url):
        raise UserError(
            f"evaluation.judge.url={judge.url}: not the address of a server, as in http://localhost:8000/v1"
        )
    if bool(judge.url) != bool(judge.model):
        given, lacking = ("url", "model") if judge.url else ("model", "url")
        raise UserError(
            f"evaluation.judge.{given}= without evaluation.judge.{lacking}=: a judge is a model of a server"
        )
    barrier = recipe.heal.barrier
    if barrier.strength is None and (barrier.power or not barrier.tau):
        contrary = f"power={barrier.power:g}" if barrier.power else "tau=0"
        raise UserError(
            f"heal.barrier.{contrary}: with heal.barrier.strength=auto lambda follows D / tau, and nothing else; give "
            "heal.barrier.strength a number"
        )
    if recipe.data.vector and recipe.steer.open:
        left = "band" if recipe.steer.band is None else "method"
        raise UserError(
            f"steer.{left}=auto with data.vector={recipe.data.vector}: a vector says itself where and how it steers; "
            "leave one of the two out"
        )
    doses = [f"{dose:g}" for dose in recipe.evaluation.doses]
    if twice := [dose for dose in doses if doses.count(dose) > 1]:
        raise UserError(f"evaluation.doses: {twice[0]} is there twice; a dose is measured once")
    if recipe.generation.keep and not recipe.generation.temperature:
        raise UserError(
            f"generation.keep={recipe.generation.keep} with generation.temperature=0: a greedy completion is the same "
            "at every try; leave one of the two out"
        )
    if not recipe.generation.alphas:
        raise UserError("generation.alphas=[]: at least one dose is needed")
    if forbidden := [letter for letter in _NOT_IN_A_PROJECT if letter in (recipe.tracking.project or "")]:
        raise UserError(
            f"tracking.project={_one_line(recipe.tracking.project)}: W&B takes no {' '.join(forbidden)} in a project's "
            "name; a team goes into tracking.entity"
        )
    planned = recipe.generation.prompts * len(recipe.generation.alphas)
    known = recipe.scale != AUTO or "generation.prompts" not in recipe.by_scale
    if known and planned < recipe.filter.min_train:
        raise UserError(
            f"generation.prompts x generation.alphas = {planned} completions, fewer than "
            f"filter.min_train={recipe.filter.min_train}"
        )


def to_yaml(recipe: Recipe) -> str:
    """The resolved recipe as YAML, in the order of the dataclasses; its texts are the characters that they are."""
    escaped, texts = deepcopy(recipe), dict[str, str]()
    for item in keys():
        *sections, last = item.name.split(".")
        section = reduce(getattr, sections, escaped)
        if item.takes_text and getattr(section, last) is not None:
            texts[item.name] = _not_interpolated(str(getattr(section, last)))
            setattr(section, last, texts[item.name])
    config = DictConfig(OmegaConf.to_container(OmegaConf.structured(escaped)))
    for item in keys():
        if item.name in texts:  # the container has lost the escape of a missing value
            OmegaConf.update(config, item.name, texts[item.name])
        elif item.auto:
            OmegaConf.update(config, item.name, item.written(OmegaConf.select(config, item.name)))
    return OmegaConf.to_yaml(config, resolve=True)


def to_mapping(recipe: Recipe) -> Settings:
    """The resolved recipe as plain nested dictionaries, as a reader of its YAML sees them."""
    mapping = yaml.safe_load(to_yaml(recipe))
    assert isinstance(mapping, dict)
    return mapping


def from_mapping(values: Settings, where: str) -> Recipe:
    """A recipe from a resolved `recipe.yaml`, which another version of heal may have written.

    A key that it lacks takes its default, or what runs did before there was such a key (`before` of `heal.config.key`).

    Raises:
        UserError: a key that this version does not know, or a value that it does not take.
    """
    known = keys_by_name()
    settings = flatten(values, where)
    config = OmegaConf.structured(Recipe)
    for name, item in known.items():
        if item.before is not AS_DEFAULT and name not in settings:
            settings[name] = item.before
    for name, value in settings.items():
        if name not in known:
            raise UserError(
                f"unknown key '{name}' in {where}: this version of heal has no such key; continue with the version "
                "that wrote it, or take the key out if it was added by hand"
            )
        set_key(config, name, value, f"in {where}")
    recipe = OmegaConf.to_object(config)
    assert isinstance(recipe, Recipe)
    return recipe
