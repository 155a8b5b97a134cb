"""The command line `heal COMMAND ...`: a command is a file of heal/commands, which is imported when it is called."""

import sys
from collections.abc import Sequence

from heal.choices import load, names, summary
from heal.errors import UserError, nearest
from heal.guard import HELP_WORDS, guarded
from heal.versions import device_name, versions_line

COMMANDS = "heal.commands"


def main(words: Sequence[str] | None = None) -> None:
    """Runs one command.

    Args:
        words: the command's name, then its own words; default: those that this process was given.

    Raises:
        SystemExit: 2 after a mistake in the words, 1 after a failure, 130 after a stop; see `heal.guard`.
    """
    first, *others = list(sys.argv[1:] if words is None else words) or ["--help"]
    modules = {name.replace("_", "-"): name for name in names(COMMANDS)}
    if first in HELP_WORDS:
        guarded(lambda: print(help_text()))
    elif first == "--version":
        guarded(lambda: print(version_text()))
    elif first in modules:
        guarded(lambda: load(COMMANDS, modules[first], "main")(others))  # its imports too
    else:
        guarded(lambda: _refuse(first, list(modules)))


def help_text() -> str:
    """`heal --help`: one line a command, from the first line of its file."""
    listed = [f"  {name.replace('_', '-'):<18} {summary(COMMANDS, name)}" for name in names(COMMANDS)]
    return "\n".join(
        [
            "usage: heal COMMAND [key=value ...]",
            "       heal COMMAND --help | heal --help | heal --version",
            "",
            "Turns activation steering into weights without the damage.",
            "",
            "commands:",
            *listed,
        ]
    )


def version_text() -> str:
    """`heal --version`: the versions that matter, and the device that a run would take."""
    from heal.options import resolve_device

    return f"{versions_line()}, device {device_name(resolve_device('auto'))}"


def _refuse(name: str, commands: list[str]) -> None:
    raise UserError(f"'{name}': no such command{nearest(name, commands)}")


if __name__ == "__main__":
    main()
