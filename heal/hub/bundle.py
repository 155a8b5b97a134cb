"""What is pushed: files by their place in the repository, and the card."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from heal.errors import UserError
from heal.hub.rules import Card

CARD = "README.md"
_SECRET = re.compile(rb"\bhf_[A-Za-z0-9]{30,}")
_TEXTS = (".json", ".jsonl", ".jinja", ".md", ".txt", ".yaml")


@dataclass(frozen=True)
class Bundle:
    """Everything that one push puts into a repository.

    Attributes:
        repo_type: of the repository.
        files: all but the card; a path is uploaded as it is.
        card: README.md.
        base: what the hub calls the base; None: it is on no hub.
    """

    repo_type: Literal["model", "dataset"]
    files: Mapping[str, Path | bytes]
    card: Card
    base: str | None

    def contents(self) -> dict[str, Path | bytes]:
        """The card first, then the other files in alphabetical order."""
        return {CARD: str(self.card).encode(), **{name: self.files[name] for name in sorted(self.files)}}

    def sizes(self) -> dict[str, int]:
        """Bytes of each of them."""
        return {
            name: content.stat().st_size if isinstance(content, Path) else len(content)
            for name, content in self.contents().items()
        }

    def refuse_secrets(self, token: str | None = None) -> None:
        """Raises UserError where a text among the files holds `token`, or what looks like any of the hub's tokens."""
        for name, content in self.contents().items():
            if not name.endswith(_TEXTS):
                continue
            text = content.read_bytes() if isinstance(content, Path) else content
            if _SECRET.search(text) or (token and token.encode() in text):
                raise UserError(f"{name}: there is an access token of the hub in it; take it out, nothing was pushed")
