"""A chat in a terminal or a pipe: streamed answers, slash commands, and Ctrl-C that stops an answer."""

import signal
import sys
import termios
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from heal.conversation.flow import Flow, columns, fits_columns
from heal.conversation.keyboard import Keyboard
from heal.conversation.settings import Settings, wanted, words
from heal.conversation.talk import Listener, Reply, Stopped, Talk, printable
from heal.errors import UserError
from heal.keys import keys

COMMANDS = {
    "help": "what can be typed",
    "again": "take back the last message and its answers, and have it answered anew",
    "reset": "begin a new chat; the settings stay",
    "settings": "all settings as they stand",
    "quit": "leave, as Ctrl-D does",
}
_KEYS = {
    "/NAME": "what a setting is; /NAME default: as before it was set",
    "//x": "the message /x",
    "Ctrl-C": "stop an answer; at an empty prompt: leave",
    "Alt-Enter": "a line break in a message",
}


class Terminal:
    """One chat, read line by line.

    Where somebody is typing (`interactive`), a mistake is said and the chat goes on, and Ctrl-C stops an answer;
    elsewhere either ends the chat.
    """

    def __init__(self, talk: Talk, console: Console, interactive: bool):
        self._talk, self._console, self._interactive = talk, console, interactive

    def run(self) -> None:
        """Answers until there is no more input.

        Raises:
            UserError: a mistake where nobody is typing.
        """
        for line in self._lines():
            try:
                if line.startswith("/") and not line.startswith("//"):
                    if not self._obey(line[1:]):
                        return
                elif line:
                    self.say(line.removeprefix("/") if line.startswith("//") else line)
            except UserError as error:
                if not self._interactive:
                    raise
                self._console.print(Text(str(error), style="red"), soft_wrap=True)

    def say(self, user: str) -> None:
        """Has one message answered."""
        heads = self._talk.heads
        with _stoppable(self._interactive) as check:
            if fits_columns(self._console, len(heads)):
                with _Columns(self._console, heads, check) as listener:
                    self._talk.say(user, listener)
            else:
                self._talk.say(user, _Stacked(self._console, check))

    def _lines(self) -> Iterator[str]:
        if self._interactive:
            names = [*COMMANDS, *vars(Settings())]
            yield from Keyboard(self._console, names, lambda: self._said(" "))
            return
        for line in sys.stdin:
            text = line.strip()
            if text:
                self._console.print(Text(printable(f"you> {text}")))
            yield text

    def _obey(self, line: str) -> bool:
        """Whether the chat goes on after a slash command."""
        name, rest = wanted(line, list(COMMANDS))
        talk = self._talk
        if name == "quit":
            return False
        if name == "help":
            self._console.print(help_table(), style="dim")
        elif name == "settings":
            self._note(f"{talk.which}\n" + "\n".join(f"  {key:<12} {value}" for key, value in self._all()))
        elif name == "reset":
            talk.reset()
            self._note("a new chat")
        elif name == "again":
            self.say(talk.take_back())
        elif not rest:
            self._note(f"{name}: {dict(self._all())[name]}")
        else:
            talk.change(name, None if rest == "default" else "" if rest == '""' else rest)
            self._note(talk.which if name == "round" else f"{name}: {dict(self._all())[name]}")
        return True

    def _all(self) -> list[tuple[str, str]]:
        """Each setting and what it comes to."""
        talk, sampling = self._talk, self._talk.sampling
        meant = {"system": talk.system or "(none)", "top_p": sampling.top_p, "top_k": sampling.top_k}
        meant["round"] = str(talk.student.rounds[-1] + 1)
        return [(name, printable(str(meant.get(name, value)))) for name, value in vars(talk.settings).items()]

    def _said(self, between: str) -> str:
        """The round and what differs from the defaults, in one line."""
        changed = [word for word in words(self._talk.settings) if not word.startswith("round=")]
        return between.join([f"round={self._talk.student.rounds[-1] + 1}", *map(printable, changed)])

    def _note(self, text: str) -> None:
        self._console.print(Text(text, style="dim"), soft_wrap=True)


def help_table() -> Table:
    """What `/help` prints."""
    table = Table.grid(padding=(0, 2))
    for name, meaning in COMMANDS.items():
        table.add_row(f"/{name}", meaning)
    for item in keys(Settings):
        table.add_row(f"/{item.name} ...", Text(item.help))
    for name, meaning in _KEYS.items():
        table.add_row(name, meaning)
    return table


class _Stacked(Listener):
    """The answers one below the other."""

    def __init__(self, console: Console, check: Callable[[], None]):
        self._console, self._check = console, check
        self._flow = Flow(console)
        self._thinks = False

    def begins(self, side: str, head: str) -> None:
        self._console.print(Text(head, style="bold"), soft_wrap=True)
        self._flow, self._thinks = Flow(self._console), False

    def hears(self, side: str, text: str, thinking: bool) -> None:
        self._check()
        if thinking and not self._thinks:
            self._console.print(Text("thinking ...", style="dim"))
            self._thinks = True
        self._flow.show(text)

    def ends(self, side: str, reply: Reply) -> None:
        self._flow.end(reply)


class _Columns(Listener):
    """The answers side by side, in a table that stays when all are there."""

    def __init__(self, console: Console, heads: dict[str, str], check: Callable[[], None]):
        self._console, self._heads, self._check = console, heads, check
        self._replies: dict[str, Reply] = {}
        self._live = Live(
            get_renderable=lambda: columns(console, heads, dict(self._replies), whole=False),
            console=console,
            refresh_per_second=10,
            transient=True,
        )

    def __enter__(self) -> "_Columns":
        self._live.start(refresh=True)
        return self

    def __exit__(self, *error: object) -> None:
        self._live.stop()
        if self._replies:
            self._console.print(columns(self._console, self._heads, self._replies, whole=True))

    def begins(self, side: str, head: str) -> None:
        self._replies[side] = Reply("", "...")

    def hears(self, side: str, text: str, thinking: bool) -> None:
        self._replies[side] = Reply(text, "thinking ..." if thinking else "")
        self._check()

    def ends(self, side: str, reply: Reply) -> None:
        self._replies[side] = reply


@contextmanager
def _stoppable(interactive: bool) -> Iterator[Callable[[], None]]:
    """A function that raises `Stopped` once Ctrl-C was pressed in the context; a second time it leaves the program.

    What is typed meanwhile is not echoed into the answer; it is there at the next prompt.
    """
    if not interactive:
        yield lambda: None
        return
    pressed = False

    def press(number: int, frame: FrameType | None) -> None:
        nonlocal pressed
        if pressed:
            raise KeyboardInterrupt
        pressed = True

    def check() -> None:
        if pressed:
            raise Stopped

    handler, modes = signal.signal(signal.SIGINT, press), termios.tcgetattr(sys.stdin)
    silent = termios.tcgetattr(sys.stdin)
    silent[3] &= ~termios.ECHO
    try:
        termios.tcsetattr(sys.stdin, termios.TCSANOW, silent)
        yield check
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSANOW, modes)
        signal.signal(signal.SIGINT, handler)
