"""What a run records beside its recipe, and of its export."""

from dataclasses import dataclass, field

from heal.coverage import Coverage
from heal.trait import Trait


@dataclass(frozen=True)
class Sizes:
    """Batch sizes that were measured or ruled when the run started.

    Attributes:
        rows: decoded side by side.
        tokens: of a pass that scores.
        completions: of a pass that trains; 0: what `heal.batch_size` says.
    """

    rows: int = 0
    tokens: int = 0
    completions: int = 0


@dataclass(frozen=True)
class Facts:
    """What a recipe leaves open and a run's results depend on.

    Attributes:
        dtype: of the base, resolved.
        trait: its content.
        batching: sizes in use; free to change.
        vignettes, chat_template: SHA-256 of files of the user's own; None: none.
        format: of the folder.
        heal: the version that started or last continued it.
        coverage: what LoRA covers of the linear layers of the trained blocks; None: an earlier version did not say.
        own: digests of the vector and the completions of the user's own, by key.
        recipes: digests of the recipe that the run began with, and of those that later versions made of it, without
            what may change; empty: an earlier version did not say.
    """

    dtype: str
    trait: Trait
    batching: Sizes = field(default_factory=Sizes)
    vignettes: str | None = None
    chat_template: str | None = None
    format: int = 1
    heal: str = ""
    coverage: Coverage | None = None
    own: dict[str, str] = field(default_factory=dict)
    recipes: tuple[str, ...] = ()

    def changed(self, other: "Facts") -> list[str]:
        """The names of what differs and would change results."""
        names = ("dtype", "trait", "vignettes", "chat_template")
        changed = [name for name in names if getattr(self, name) != getattr(other, name)]
        own = self.own | other.own
        return [*changed, *(name for name in own if self.own.get(name) != other.own.get(name))]


@dataclass(frozen=True)
class Exported:
    """What the record of an export says to other commands: its rounds (from 0), and the SHA-256 of its files.

    `among` are the rounds among which the last of them was chosen; None: an earlier version, which took the last.
    """

    rounds: tuple[int, ...] = ()
    among: tuple[int, ...] | None = None
    files: dict[str, str] = field(default_factory=dict)
