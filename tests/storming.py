"""What a storm is made of: commands as processes of their own, damage to a file, and whether two folders are alike."""

import json
import os
import random
import re
import shutil
import signal
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from heal.records import text_lines
from heal.run.files import sha256
from heal.run.folder import RunFolder
from heal.run.manifest import MANIFEST
from tests.running import begin

# Of a run whose rounds take seconds: with a rank and learning rate at which its LoRA is not zero.
SHORT = (
    *("evaluation.prompts=2", "evaluation.questions=2", "evaluation.tokens=4", "evaluation.neutral_texts=2"),
    *("evaluation.vignettes=none", "evaluation.resamples=100", "evaluation.steered=false"),
    *("generation.tokens=8", "generation.prompts=2", "filter.min_train=2", "steer.pairs=4"),
    *("calibration.max_passes=2", "heal.warmup=0", "heal.epochs=1"),
)
# What no two runs share: times, and what another process writes.
CLOCK = ("events.jsonl", ".lock", "wandb/", "report/index.html")


@dataclass(frozen=True)
class Said:
    """How a command ended: its exit status (negative: the signal that killed it), and its two outputs."""

    status: int
    out: str
    err: str
    seconds: float

    @property
    def timeless(self) -> str:
        """Standard output without what depends on how long things took."""
        lines = [re.sub(r" +\([^()]* s\)$", "", line) for line in self.out.splitlines()]
        return "\n".join(line for line in lines if not line.endswith(" left"))

    @property
    def refused(self) -> bool:
        """Whether it ended in one line that names the mistake."""
        lines = self.err.strip().splitlines()
        return self.status in (1, 2) and len(lines) == 1 and lines[0].startswith("heal: ")

    @property
    def last(self) -> str:
        """Its last words, on one line."""
        return (self.err.strip().splitlines() or self.out.strip().splitlines() or ["(nothing)"])[-1]


def command(
    words: Iterable[str],
    folder: Path,
    *,
    number: int = signal.SIGKILL,
    after: float | None = None,
    when: Callable[[], bool] | None = None,
    seconds: float = 300.0,
    place: Path | None = None,
) -> Said:
    """Runs `heal WORDS` in a process of its own; with `after` or `when` it gets the signal `number` then.

    Args:
        words: the command line.
        folder: where its outputs go.
        number: the signal.
        after: seconds after which it is sent.
        when: sent as soon as that is so.
        seconds: beyond which the command counts as hanging and is killed.
        place: the current folder of the command; None: that of this process.
    """
    out, err = folder / "stdout.txt", folder / "stderr.txt"
    for path in (out, err):
        path.write_bytes(b"")
    process, start, sent = begin(list(words), out, err, place), time.monotonic(), None
    while process.is_alive():
        now = time.monotonic()
        due = (after is not None and now - start >= after) or (when is not None and when())
        if sent is None and due and process.pid:
            os.kill(process.pid, number)
            sent = now
        if now - (sent or start) > seconds and process.pid:
            os.kill(process.pid, signal.SIGKILL)
        process.join(0.005)
    assert process.exitcode is not None
    texts = [path.read_text(encoding="utf-8", errors="replace") for path in (out, err)]
    return Said(process.exitcode, *texts, time.monotonic() - (sent or start))


def contents(folder: Path) -> dict[str, str]:
    """Digest of every file below a run's folder but those that depend on the clock; of a manifest, without times."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_dir() or name.startswith(CLOCK):
            continue
        if path.name == MANIFEST:
            found[name] = str(_files_of_steps(path))
        else:
            found[name] = sha256(path) if path.is_file() else "a dangling link"
    return found


def _files_of_steps(manifest: Path) -> object:
    """The files of each step of a manifest, without their times; of a damaged one, its bytes."""
    try:
        return {step: entry["files"] for step, entry in json.loads(manifest.read_bytes()).items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return manifest.read_bytes() if manifest.exists() else None


def different(one: dict[str, str], other: dict[str, str]) -> list[str]:
    """The names that only one of the two has, or that differ."""
    return sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))


def steps_done(folder: RunFolder) -> int:
    """How many steps the manifests of a run name."""
    manifests = [folder.baseline / MANIFEST, *folder.path.glob(f"rounds/*/{MANIFEST}")]
    return sum(len(json.loads(path.read_bytes())) for path in manifests if path.is_file())


def events_are_whole(folder: Path) -> bool:
    """Whether every line of the events is one JSON object."""
    lines = text_lines(folder / "events.jsonl")
    return all(line.startswith("{") and line.rstrip().endswith("}") for line in lines)


@dataclass(frozen=True)
class Damage:
    """A way in which a file is lost or changed: `do(path, other, draw)`, `other` being a file of another run.

    Attributes:
        of_content: whether it is nothing to an empty file.
    """

    name: str
    do: Callable[[Path, Path, random.Random], object]
    of_content: bool = False


def _flip(path: Path, other: Path, draw: random.Random) -> None:
    content = bytearray(path.read_bytes())
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    path.write_bytes(content)


def _cut(path: Path, other: Path, draw: random.Random) -> None:
    os.truncate(path, draw.randrange(path.stat().st_size))


def _in_its_place(make: Callable[[Path, Path], object]) -> Callable[[Path, Path, random.Random], object]:
    def replace(path: Path, other: Path, draw: random.Random) -> None:
        path.unlink()
        make(path, other)

    return replace


DAMAGES = (
    Damage("truncated", _cut, True),
    Damage("emptied", lambda path, other, draw: path.write_bytes(b"")),
    Damage("one bit flipped", _flip, True),
    Damage("another run's", lambda path, other, draw: shutil.copyfile(other, path)),
    Damage("missing", _in_its_place(lambda path, other: None)),
    Damage("a folder", _in_its_place(lambda path, other: path.mkdir())),
    Damage("a dangling link", _in_its_place(lambda path, other: path.symlink_to("nowhere"))),
    Damage("a link elsewhere", _in_its_place(lambda path, other: path.symlink_to(other))),
)
