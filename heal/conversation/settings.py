"""What can be set of a chat, when it starts and while it goes on: one list for words, slash commands and the page."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from heal.config import key
from heal.errors import UserError, nearest
from heal.options import read_options

SIDES = ("base", "steered", "healed")


@dataclass(frozen=True)
class Settings:
    round: str | None = key(None, "which round: counted from 1, best or last; none: what the run's export.round says")
    gate: float = key(1.0, "of healed: multiplier of the whole update, as of heal export; 1: as trained")
    dose: float = key(1.0, "of steered: a multiple of c*, of either sign")
    sides: str = key(",".join(SIDES), "who answers, in this order; each remembers its own answers")
    system: str | None = key(None, 'system prompt; "": without one; none: the run\'s own')
    tokens: int = key(128, "token budget of an answer", 1)
    temperature: float = key(0.0, "sampling temperature; 0: greedy", 0)
    top_p: float | None = key(None, "probability mass sampled from; none: as in the run's recipe", 0, 1)
    top_k: int | None = key(None, "number of most probable tokens sampled from, 0: all; none: as in the recipe", 0)
    seed: int = key(0, "seed of the sampling", 0)

    @property
    def answering(self) -> tuple[str, ...]:
        """Names of the sides that answer.

        Raises:
            UserError: no side, one twice, or an unknown one.
        """
        names = tuple(name.strip() for name in self.sides.split(","))
        for name in names:
            if name not in SIDES:
                raise UserError(f"sides={self.sides}: no side '{name}'{nearest(name, list(SIDES))}")
        if len(set(names)) < len(names):
            raise UserError(f"sides={self.sides}: a side is in it twice")
        return names

    def changed(self, name: str, text: str | None) -> "Settings":
        """These settings with another value of one, read as on the command line; None: its default.

        Raises:
            UserError: no such setting, or not one of its values.
        """
        given = [] if text is None else [f"{name}={text}"]
        made = replace(self, **{name: getattr(read_options(Settings, given), name)})
        made.answering  # noqa: B018
        return made


def words(settings: Settings) -> Iterator[str]:
    """`name=value` of each setting that is not at its default, as a command line takes it."""
    for name, value in vars(settings).items():
        if value != getattr(Settings(), name):
            yield f"{name}={value:g}" if isinstance(value, float) else f"{name}={value}"


def wanted(line: str, commands: Sequence[str]) -> tuple[str, str]:
    """The name and the rest of a slash command, without its slash.

    Raises:
        UserError: neither one of `commands` nor a setting.
    """
    name, _, rest = line.strip().partition(" ")
    names = [*commands, *vars(Settings())]
    if name not in names:
        raise UserError(f"'/{name}': no such command{nearest(f'/{name}', [f'/{known}' for known in names])}")
    return name, rest.strip()
