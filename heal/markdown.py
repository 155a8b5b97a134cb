"""Texts of a user or a model inside Markdown that stays what it is."""

import re


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
