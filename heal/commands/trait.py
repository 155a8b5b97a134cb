"""Writes a trait file from two sentences, or shows what a trait comes to."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from heal.banks import AUTO, LANGUAGES
from heal.config import Recipe, key
from heal.errors import UserError, nearest
from heal.guard import command
from heal.options import options_help, output_path, read_options
from heal.trait import Trait, make_trait, trait_yaml
from heal.traits import trait_of

USAGE = """heal trait new positive="You ..." negative="You ..." [name=NAME] [language=LANGUAGE] [out=FILE]
       heal trait show [trait=NAME|PATH] [positive=... negative=...] [sign=-1] [language=LANGUAGE]"""
PURPOSE = """`new` makes a trait of two sentences and writes all of it, commented, to a file to edit: its prompts, and
patterns of text that talks about it. `show` prints what a trait comes to; heal train takes the same words."""


@dataclass
class Options:
    trait: str | None = key(None, "show: a trait in recipes/traits/, the path of a YAML file, or several of them")
    positive: str | None = key(None, "system prompt, or short description, of the persona to train")
    negative: str | None = key(None, "the same of its opposite")
    name: str | None = key(None, "of the trait; none: from the positive persona's words")
    sign: Literal["1", "-1"] = key("1", "show: -1 swaps the personas")
    language: str = key(AUTO, "of the prompts and patterns", choices={AUTO: "that of the personas", **LANGUAGES})
    out: str | None = key(None, "new: file to write; none: NAME.yaml")


def main(words: Sequence[str]) -> None:
    """`heal trait`."""
    command(words, lambda: options_help(Options, USAGE, PURPOSE), trait)


def trait(words: Sequence[str]) -> None:
    """Writes or shows a trait."""
    action = words[0] if words and "=" not in words[0] else ""
    options = read_options(Options, words[1:] if action else words)
    actions: dict[str, Callable[[Options], None]] = {"new": new, "show": show}
    if not action:
        raise UserError("heal trait new or heal trait show; --help says more")
    if action not in actions:
        raise UserError(f"'{action}': no such action{nearest(action, list(actions))}")
    actions[action](options)


def new(options: Options) -> None:
    """Writes the trait of two sentences whole."""
    if options.trait or options.sign != "1":
        raise UserError("heal trait new takes positive= and negative=; swap these two for the opposite")
    made = _made(options)
    path = output_path(options.out or f"{made.name}.yaml", folder=False)
    if path.suffix not in (".yaml", ".yml"):
        raise UserError(f"out={options.out}: the file's name must end in .yaml, by which trait= knows it")
    if path.exists():
        raise UserError(f"out={path}: there is such a file already; choose another")
    text = trait_yaml(made, path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    print(f"written    {path} ({made.source})")


def show(options: Options) -> None:
    """Prints what a trait comes to."""
    if options.trait and (options.positive or options.negative or options.name):
        raise UserError("trait= or positive= and negative=: one of the two")
    shown = _loaded(options) if options.trait else _made(options)
    of_foundation = [("foundation", f"{shown.foundation}, intent {shown.intent:+d}")] if shown.foundation else []
    for name, text in (
        ("name", shown.name),
        ("description", shown.description),
        ("positive", shown.positive),
        ("negative", shown.negative),
        *of_foundation,
        ("prompts", shown.source),
        ("for example", f"{shown.generation_prompts[0]} | {shown.heldout_prompts[0]}"),
        ("narration", f"{len(shown.narration)} patterns"),
        *(("", pattern) for pattern in shown.narration),
    ):
        print(f"{name:<12} {' '.join(text.split())}".rstrip())


def _loaded(options: Options) -> Trait:
    return trait_of(Recipe(trait=options.trait or "", language=options.language, sign=options.sign))


def _made(options: Options) -> Trait:
    made = make_trait(options.positive or "", options.negative or "", options.name or "", options.language)
    return made.opposite() if options.sign == "-1" else made
