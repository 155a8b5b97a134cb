"""Answers as they come: a growing text that keeps words whole at a terminal's edge, and columns side by side."""

import re
from collections.abc import Mapping

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from heal.conversation.talk import Reply, printable

_COLUMN = 33  # columns of the terminal that an answer beside others takes at least
_WORD = 24  # cells up to which a word is held back until it is whole
_PARTS = re.compile(r"\n|[^\S\n]+|\S+")


class Flow:
    """Writes an answer as it grows.

    A word waits until it is whole, so that lines break between words; wide characters, which have no spaces between
    them, do not. A tokenizer that takes back what it had decoded has the answer written once more at the end.
    """

    def __init__(self, console: Console):
        self._console = console
        self._width = console.width if console.is_terminal else None
        self._shown = ""
        self._column = 0

    def show(self, text: str) -> None:
        """The answer so far."""
        text = printable(text)
        word = re.split(r"\s", text)[-1]
        whole = len(word) != cell_len(word) or len(word) > _WORD
        text = text.rstrip("\ufffd") if whole else text[: len(text) - len(word)].rstrip()  # \ufffd: half a character
        if len(text) > len(self._shown) and text.startswith(self._shown):
            self._write(text[len(self._shown) :])
            self._shown = text

    def end(self, reply: Reply) -> None:
        """The answer as it is in the end, and why it ends there."""
        text = printable(reply.text)
        if text.startswith(self._shown):
            self._write(text[len(self._shown) :])
        else:
            self._write("\n" + text)
        note = f"{' ' if text else ''}[{reply.note}]" if reply.note else ""
        self._console.print(Text(note, style="dim"), soft_wrap=True)
        self._console.print()

    def _write(self, text: str) -> None:
        out = []
        for part in _PARTS.findall(text):
            after = self._column + cell_len(part)
            full = self._width is not None and self._column and after + part.isspace() > self._width
            if part == "\n" or full:
                out.append("\n")
                self._column = 0
                if part.isspace():
                    continue
                after = cell_len(part)
            out.append(part)
            self._column = after if self._width is None else (after - 1) % self._width + 1
        self._console.print(Text("".join(out)), end="", soft_wrap=True)


def fits_columns(console: Console, sides: int) -> bool:
    """Whether so many answers stand side by side."""
    return console.is_terminal and sides > 1 and console.width > _COLUMN * sides


def columns(console: Console, heads: Mapping[str, str], replies: Mapping[str, Reply], whole: bool) -> Table:
    """The answers side by side.

    Args:
        console: what they are shown on.
        heads: the heading of each side.
        replies: what each has said so far.
        whole: False: no more than the last lines that fit the screen.
    """
    table = Table(expand=True)
    width = (console.width - 1) // len(heads) - 3
    taken = max((len(Text(head).wrap(console, width)) for head in heads.values()), default=1)
    cells = []
    for side, head in heads.items():
        table.add_column(Text(head, style="bold"), ratio=1)
        reply = replies.get(side, Reply(""))
        cell = Text(printable(reply.text))
        if reply.note:
            cell.append(f"{' ' if cell else ''}[{reply.note}]", style="dim")
        if not whole:
            lines = cell.wrap(console, width)
            cell = Text("\n").join(lines[-max(1, console.height - taken - 5) :])
        cells.append(cell)
    table.add_row(*cells)
    return table
