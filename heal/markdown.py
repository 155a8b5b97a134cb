"""Markdown in which texts of a user or a model stay what they are."""

import re
from collections.abc import Iterable, Sequence

from heal.trait import Trait


def fenced(text: str, language: str = "text") -> str:
    """A code block that nothing in `text` can end."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text}\n{fence}"


def inline_code(text: str) -> str:
    """Inline code that nothing in `text` can end, on one line of a table."""
    flat = " ".join(text.replace("|", "/").replace("`", "'").split())
    return f"`{flat}`"


def escaped(text: str) -> str:
    """`text` as plain words on one line: Markdown's own characters are escaped."""
    return re.sub(r"([\\`*_\[\]<>#|])", r"\\\1", " ".join(str(text).split()))


def markdown_table(titles: Sequence[str], rows: Iterable[Iterable[str]]) -> str:
    """A table, in whose cells bars are escaped where they are not yet."""
    lines = (titles, ["---"] * len(titles), *rows)
    return "\n".join("| " + " | ".join(re.sub(r"(?<!\\)\|", r"\|", cell) for cell in line) + " |" for line in lines)


def personas(trait: Trait, towards: str = "Towards:") -> list[str]:
    """What a trait is, by its description and its two personas, in paragraphs."""
    return [fenced(trait.description), towards, fenced(trait.positive), "Away from:", fenced(trait.negative)]
