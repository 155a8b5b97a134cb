"""A run on disk: written whole or not at all, checked when read, and continued (docs/method.md, Run folder)."""

import fcntl
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from functools import reduce
from pathlib import Path
from typing import Any

from heal.config import AS_DEFAULT, Recipe
from heal.errors import UserError
from heal.parallel import by_first, first_alone
from heal.recipe import from_mapping, keys_by_name, sized, to_mapping, to_yaml
from heal.records import digest, read_record, read_sealed, sealed_bytes
from heal.run.facts import Exported, Facts
from heal.run.files import Files, holds, write_atomic
from heal.run.manifest import JUDGE, MANIFEST, SUMMARIES, Manifest
from heal.yaml_text import flatten, read_yaml

FORMAT = 2  # of a run folder; 1 had stages.json for manifests
STEPS = ("extract", "calibrate", "generate", "steered", "heal", "healed", JUDGE)  # of a round
EXPORT_RECORD = "heal_export.json"
_UNLIKE = "missing or not what the run wrote; the command that made the run makes it again, or says why not"
_LOST = "put it back, or start the run anew elsewhere"

# Keys that may change between two starts of one run: they do not change what it computes (a scale's numbers do).
_BUDGET = "evaluation.judge.requests"
FREE_KEYS = ("scale", "run.rounds", "run.stop", "run.root", "run.name", "export.", "tracking.", "compute.", _BUDGET)
# Keys that say where something lies: a user may write another place into recipe.yaml after moving it.
PLACES = ("model.name", "model.chat_template")
# What a start that was killed before the run began may have left in its folder.
LOCK = ".lock"
UNBEGUN = (LOCK, "facts.json", ".facts.json.*.tmp", ".recipe.yaml.*.tmp")


class RunFolder:
    """`runs/<name>/`: recipe, facts, events, one folder a round, report. Of several processes the first alone reads
    and writes it.

    Each folder of results has a manifest of its finished steps with the SHA-256 of their files. A step counts as
    finished when the manifest names it and its files are what it wrote.
    """

    def __init__(self, path: Path):
        self.path = path

    @property
    def report(self) -> Path:
        return self.path / "report"

    @property
    def adapter(self) -> Path:
        """The adapter that the run exports at its end."""
        return self.path / "export" / "adapter"

    @first_alone
    def exported(self) -> list[int]:
        """The rounds that are in that adapter, as its record says; empty where there is none, or it is damaged."""
        return list(self._exported().rounds)

    def delivered(self) -> list[int]:
        """The rounds among which that adapter's last one was chosen: those that the run had gone through by then."""
        record = self._exported()
        return list(record.rounds if record.among is None else record.among)

    def _exported(self) -> Exported:
        """The record of that adapter; one of no rounds where there is none, or it is damaged."""
        record = self.adapter / EXPORT_RECORD
        if not record.is_file():
            return Exported()
        written = read_record(Exported, record)
        intact = all(holds(self.adapter / name, known) for name, known in written.files.items())
        return written if intact else Exported()

    @property
    def baseline(self) -> Path:
        """Results of base, prompted and opposite, measured once."""
        return self.path / "baseline"

    @property
    def doses(self) -> Path:
        """Results of base under the first round's vector, measured once."""
        return self.path / "doses"

    @property
    def place(self) -> Path:
        """Where and how the run steers, if that was left to be chosen."""
        return self.path / "place"

    @property
    def crosstalk(self) -> Path:
        """Results of base under the vector of each of several traits, which have a folder each in it."""
        return self.path / "crosstalk"

    def round(self, index: int) -> Path:
        """The folder of a round, counted from 0."""
        return self.path / "rounds" / f"{index:02d}"

    @first_alone
    def rounds(self) -> list[int]:
        """The rounds whose every step is finished, from 0 up to the first that is not."""
        steps, finished = self.steps(), 0
        while all(self.finished(self.round(finished), step) for step in steps):
            finished += 1
        return list(range(finished))

    @first_alone
    def readable(self, last: int | None = None) -> list[int]:
        """The finished rounds up to `last` (None: all), whose files and those of the baseline are as they were written.

        Raises:
            UserError: a file is not; names it, and says what to do.
        """
        steps, finished = self.steps(), list[int]()
        of_traits = [self.crosstalk / name for name in self._traits()]
        self._refuse_damaged(self.baseline, self.place, self.doses, self.crosstalk, *of_traits)
        while last is None or len(finished) <= last:
            at = self.round(len(finished))
            known = self._manifest(at).steps
            if not known and any((at / name).exists() for name in SUMMARIES):  # a finished round without its manifest
                raise UserError(f"{at / MANIFEST}: {_UNLIKE}")
            if any(step not in known for step in steps):
                break
            self._refuse_damaged(at)
            finished.append(len(finished))
        return finished

    def _refuse_damaged(self, *folders: Path) -> None:
        """Raises UserError where a file of a finished step is not what it wrote."""
        for folder in folders:
            for step in self._manifest(folder).steps:
                for path in self.damaged(folder, step):
                    raise UserError(f"{path}: {_UNLIKE}")

    @first_alone
    def steps(self) -> tuple[str, ...]:
        """The steps of a round of this run, in order."""
        steered = not (self.path / "recipe.yaml").is_file() or self.recipe().evaluation.steered
        return tuple(step for step in STEPS if steered or step != "steered")

    @first_alone
    def recipe(self) -> Recipe:
        """The run's recipe; keys that are younger than the run are at their defaults.

        Raises:
            UserError: the folder is no run, or one of a later version; the recipe is not the one that was written.
        """
        path = self.path / "recipe.yaml"
        if not path.is_file():
            raise self._no_run()
        facts = self.facts()
        content = read_yaml(path)
        recipe = from_mapping(content, str(path))
        known = facts.recipes if facts is not None else ()
        if known and _fixed(recipe, flatten(content, str(path))) not in known:
            raise UserError(f"{path}: changed or damaged, not the recipe of this run; put the one that it wrote back")
        return recipe

    @first_alone
    def facts(self) -> Facts | None:
        """What `start` recorded beside the recipe; None before it.

        Raises:
            UserError: the folder is a run that has lost them, or one of a later version.
        """
        path = self.path / "facts.json"
        if path.is_file():
            self._refuse_later()
            return read_sealed(Facts, path, _LOST)
        if (self.path / "recipe.yaml").is_file():
            raise UserError(f"{path} is missing; {_LOST}")
        return None

    @first_alone
    def started(self) -> Facts:
        """The facts of a run that has been started; UserError where there is none."""
        facts = self.facts()
        if facts is None or not (self.path / "recipe.yaml").is_file():
            raise self._no_run()
        return facts

    @first_alone
    def as_begun(self, recipe: Recipe) -> tuple[Recipe, dict[str, Any]]:
        """The recipe as the run in this folder goes on with it, and the keys that it keeps from an earlier version.

        A key that is younger than the run, or has another default now, keeps what it was then (`before` of
        `heal.config.key`) unless another value than the default, or the scale's, is asked for. Where no scale is asked
        for, the run goes on at the one that it began with, whatever this device is.
        """
        if not (self.path / "recipe.yaml").is_file():
            return sized(recipe), {}
        run = self.recipe()
        goes_on = deepcopy(sized(recipe, run.scale))
        begun, asked = (flatten(to_mapping(one), "recipe") for one in (run, goes_on))
        kept = {
            name: item.before
            for name, item in keys_by_name().items()
            if item.before is not AS_DEFAULT
            and begun[name] == item.before != asked[name]
            and (asked[name] == item.written(item.default) or name in recipe.by_scale)
        }
        for name, value in kept.items():
            *sections, last = name.split(".")
            setattr(reduce(getattr, sections, goes_on), last, value)
        return goes_on, kept

    @first_alone
    def refuse_other(self, recipe: Recipe, facts: Facts) -> None:
        """Compares with what the folder holds, if it holds a run; writes nothing.

        Raises:
            UserError: the folder belongs to another recipe (shows what differs), to a later version, or is no run.
        """
        recipe_file = self.path / "recipe.yaml"
        if not recipe_file.is_file():
            names = [path.name for path in self.path.iterdir()] if self.path.is_dir() else []
            if not all(any(fnmatch(name, pattern) for pattern in UNBEGUN) for name in names):
                raise UserError(f"{self.path}: the folder holds something that is not a run; choose another run.name")
            return
        before, now = (flatten(to_mapping(one), "recipe") for one in (self.recipe(), recipe))
        differing = [
            f"{name}: {before.get(name)} there, {now.get(name)} asked"
            for name in sorted(before.keys() | now.keys())
            if before.get(name) != now.get(name) and not name.startswith(FREE_KEYS)
        ]
        differing += [f"{name}: changed since the run started" for name in self.started().changed(facts)]
        if differing:
            raise UserError(
                f"{self.path} is a run of another recipe ({'; '.join(differing)}). "
                "Give run.name=... to start a new one, or the same settings to continue."
            )

    @first_alone
    def start(self, recipe: Recipe, facts: Facts) -> bool:
        """Makes the folder, or continues it; True when it continues. See `refuse_other`."""
        self.refuse_other(recipe, facts)
        continued = (self.path / "recipe.yaml").is_file()
        # First the facts, which know the recipe of before as well: a process may be killed between the two writes.
        path = self.path / "recipe.yaml"
        known = (*self.started().recipes, _fixed(self.recipe(), flatten(read_yaml(path), ""))) if continued else ()
        recipes = dict.fromkeys((*known, _fixed(recipe, keys_by_name())))
        write_atomic(self.path / "facts.json", sealed_bytes(replace(facts, recipes=tuple(recipes))))
        write_atomic(path, to_yaml(recipe).encode())
        return continued

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Holds the folder for this process, and those that it works with.

        Raises:
            UserError: another process runs in it.
        """
        with ExitStack() as held:
            by_first(lambda: held.enter_context(self._lock()))
            yield

    @contextmanager
    def _lock(self) -> Iterator[None]:
        self.path.mkdir(parents=True, exist_ok=True)
        path = self.path / LOCK
        with open(path, "w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise UserError(f"{self.path}: another process is running in this folder") from error
            except OSError as error:  # of a disk that knows no locks
                error.filename = str(path)
                raise
            yield

    @first_alone
    def refuse_running(self) -> None:
        """UserError where another process runs in the folder; makes nothing."""
        if (self.path / LOCK).exists():
            with self.locked():
                pass

    @first_alone
    def finished(self, folder: Path, step: str) -> bool:
        """Whether `step` is finished in `folder` and its files are as it wrote them.

        A step with a damaged file that nothing was built on is not finished (it will be done again), nor are those
        before it that wrote the same file.

        Raises:
            UserError: a damaged file has later results built on it.
        """
        manifest = self._manifest(folder)
        if step not in manifest.steps:
            return False
        for name in manifest.damaged(step):
            if self._later(folder) or not all(name in other.files for other in manifest.after(step)):
                raise _lost(folder, name)
            if (folder / name).is_dir():  # said before the step is done again, not when it is written
                raise UserError(f"{folder / name}: a folder is in the way of a file of the run; take it away")
            return False
        return True

    @first_alone
    def damaged(self, folder: Path, step: str) -> list[Path]:
        """The files of a step that the manifest names which are missing, or not what it wrote."""
        manifest = self._manifest(folder)
        return [folder / name for name in manifest.damaged(step)] if step in manifest.steps else []

    @first_alone
    def finish(self, folder: Path, step: str, files: Files, seconds: float) -> None:
        """Writes a step's files, each whole, then marks the step finished."""
        Manifest(folder).finish(step, files, seconds)

    @first_alone
    def seconds(self, folder: Path) -> dict[str, float]:
        """Wall time by finished step."""
        return {name: entry.seconds for name, entry in Manifest(folder).steps.items()}

    def _traits(self) -> list[str]:
        """The names of the traits of a run that trains several; none of any other."""
        facts = self.facts()
        return [] if facts is None else [part.name for part in facts.trait.parts]

    def _later(self, folder: Path) -> bool:
        """Whether results exist that were computed after those in `folder`, from them."""
        if folder == self.baseline:
            return bool(Manifest(self.round(0)).steps.keys() & {"steered", "heal"})
        if folder == self.place:
            return self.recipe().steer.open and bool(Manifest(self.round(0)).steps)
        if self.crosstalk in (folder, folder.parent):
            return bool(self._traits() and Manifest(self.round(0)).steps)
        rounds = self.path / "rounds"
        if folder.parent != rounds or not rounds.is_dir():
            return False
        return any(other > folder and Manifest(other).steps for other in rounds.iterdir() if other.is_dir())

    def _manifest(self, folder: Path) -> Manifest:
        """The manifest of a folder; UserError where it is gone, and later results are built on what it named."""
        manifest = Manifest(folder)
        if not manifest.steps and self._later(folder):
            raise _lost(folder, MANIFEST)
        return manifest

    def _no_run(self) -> UserError:
        return UserError(f"{self.path}: not a run folder (no recipe.yaml)")

    def _refuse_later(self) -> None:
        """UserError where the folder's format is one that this version does not know."""
        path = self.path / "facts.json"
        number = read_sealed(_Format, path, _LOST).format if path.is_file() else 1
        if number > FORMAT:
            raise UserError(
                f"{self.path}: made by a later version of heal (format {number}, this one knows {FORMAT}); update heal"
            )


@dataclass(frozen=True)
class _Format:
    """The one field of facts.json that every version reads."""

    format: int = 1


def _lost(folder: Path, name: str) -> UserError:
    return UserError(
        f"{folder / name}: missing or not what the run wrote, and later results are built on it. "
        f"Put it back, or delete {folder.name} and every later round to do them again."
    )


def _fixed(recipe: Recipe, names: Iterable[str]) -> str:
    """The digest of the keys `names` of a recipe (those that its file has) without what may change."""
    settings = flatten(to_mapping(recipe), "recipe")
    fixed = [name for name in names if name in settings and not name.startswith((*FREE_KEYS, *PLACES))]
    return digest({name: settings[name] for name in fixed})
