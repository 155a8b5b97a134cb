"""Lines typed at a terminal: editing, a history that outlives the chat, completion of slash commands."""

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import WordCompleter
from prompt_toolkit.formatted_text import FormattedText
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from rich.console import Console
from rich.text import Text

_LONGEST = 60  # characters of the line below the prompt


class Keyboard:
    """Iterates over what is typed, without spaces around it, until Ctrl-D, or Ctrl-C at an empty prompt.

    Enter ends a message; Alt-Enter, or pasted text, puts a line break into it.
    """

    def __init__(self, console: Console, commands: Sequence[str], state: Callable[[], str]):
        """`commands` are completed after a slash; `state` is shown below the prompt."""
        self._state = state
        self._session: PromptSession[str] = PromptSession(
            FormattedText([("bold", "you> ")]),
            history=_history(console),
            completer=WordCompleter([f"/{name}" for name in commands], sentence=True),
            complete_while_typing=False,
            key_bindings=_bindings(),
            multiline=True,
            prompt_continuation="   > ",
            bottom_toolbar=self._toolbar,
            enable_suspend=True,
        )

    def __iter__(self) -> Iterator[str]:
        while True:
            try:
                yield self._session.prompt().strip()
            except EOFError:
                return
            except KeyboardInterrupt:
                if not self._session.default_buffer.text:
                    return

    def _toolbar(self) -> FormattedText:
        said = self._state()
        short = said if len(said) <= _LONGEST else said[: _LONGEST - 3] + "..."
        return FormattedText([("noreverse", f"{short}  /help")])


def _bindings() -> KeyBindings:
    bindings = KeyBindings()

    @bindings.add("enter")
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.validate_and_handle()

    @bindings.add("escape", "enter")
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    return bindings


def _history(console: Console) -> History:
    """The inputs of earlier chats, in a file that only its user reads; of this one alone where there can be none."""
    home = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    path = Path(home) / "heal" / "chat-history"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o600)
        if not os.access(path, os.W_OK):
            raise PermissionError(f"not writable: {path}")
    except OSError as error:
        console.print(Text(f"what you type is not kept for the next chat ({error})", style="dim"), soft_wrap=True)
        return InMemoryHistory()
    return FileHistory(str(path))
