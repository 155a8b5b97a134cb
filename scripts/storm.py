"""Kills, stops, misuses and damages runs of a tiny model, and writes docs/reliability.md: `make storm`.

    python scripts/storm.py [--minutes 60] [--seed 0] [--kills 100] [--damages 200] [--folder runs/storm]

Every try is a process of its own that runs the command itself. What is drawn depends on the seed alone, though when a
kill arrives depends on the machine too. The same command continues a storm that was stopped; another folder begins
anew.
"""

import argparse
import json
import os
import platform
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"

from heal.errors import UserError  # noqa: E402
from heal.randomness import derive_seed  # noqa: E402
from heal.records import read_jsonl  # noqa: E402
from heal.run.files import append_line, sha256  # noqa: E402
from heal.run.folder import RunFolder  # noqa: E402
from tests import mistakes, running, storming, tiny  # noqa: E402
from tests.storming import DAMAGES, SHORT, Said, command, contents, different, steps_done  # noqa: E402

SAME, REFUSED, WRONG = "same bytes", "refused", "wrong"
KILLS_A_RUN = 8
STOPPED = 130
ANSWERED = 5.0  # seconds in which a SIGTERM must be answered
DISK, GROWTH = 8.0, 1.4  # KiB of the full disk, and the factor by which it grows after each refusal
MOUNT = ("mount", "-t", "tmpfs", "-o")
READERS = {
    "report": ("report", "run={run}"),
    "compare": ("compare", "{run}", "out={out}", "resamples=100"),
    "export": ("export", "run={run}", "out={out}"),
    "chat": ("chat", "run={run}", "prompt=Name a cat.", "tokens=4"),
}


@dataclass(frozen=True)
class Try:
    """One try: the row of the table that it belongs to, what it came to, and what was done and said."""

    row: str
    outcome: str
    what: str
    said: str = ""


@dataclass(frozen=True)
class Unit:
    """Some tries that are made together, and where they stand in the journal."""

    name: str
    run: Callable[[random.Random], list[Try]]


class Storm:
    """The campaign in one folder: a model, undisturbed runs to hold others against, and a journal of what was done."""

    def __init__(self, folder: Path, kills: int, damages: int):
        self.folder, self.kills, self.damages = folder, kills, damages
        self.work, self.files, self.out = folder / "work", folder / "files", folder / "out"
        self.there = self.work / "there"  # where every run lies while it is tried: paths are part of some files
        self.whole, self.half, self.other = folder / "whole", folder / "half", folder / "other"
        self.journal = folder / "journal.jsonl"
        self.expected: dict[str, str] = {}
        self.read: dict[str, tuple[str, dict[str, str]]] = {}

    def words(self, *more: str) -> list[str]:
        """The command line of a run of two rounds."""
        return ["train", *running.words(self.folder / "model", self.folder, *SHORT, f"run.root={self.work}", *more)]

    @property
    def line(self) -> list[str]:
        return self.words("run.name=there")

    def heal(self, words: list[str], **how: object) -> Said:
        return command(words, self.folder, **how)  # type: ignore[arg-type]

    def prepare(self) -> None:
        """The model, the undisturbed runs, and what the reading commands say of them."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if not self.half.is_dir():
            for path in self.folder.iterdir():
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            tiny.save("llama", self.folder / "model")
            self.files.mkdir()
            mistakes.prepare(self.files, (self.folder / "model").resolve())
            self._undisturbed(self.other, "run.seed=1")
            self._undisturbed(self.whole)
            self.clear()
            self.heal(self.line, when=lambda: steps_done(RunFolder(self.there)) >= 14)
            shutil.move(self.there, self.half)
        self.expected = contents(self.whole)
        for name in READERS:
            self.put(self.whole)
            said = self.reader(name)
            assert said.status == 0, said.err
            self.read[name] = (said.timeless, self.result(name))

    def _undisturbed(self, to: Path, *more: str) -> None:
        self.clear()
        said = self.heal(self.words("run.name=there", *more))
        assert said.status == 0, said.err + said.out
        shutil.move(self.there, to)

    def clear(self) -> None:
        for path in (self.work, self.out):
            shutil.rmtree(path, ignore_errors=True)
        self.work.mkdir()

    def put(self, template: Path) -> None:
        """A copy of a run where runs lie."""
        self.clear()
        shutil.copytree(template, self.there, symlinks=True)

    def reading(self, name: str) -> list[str]:
        return [word.format(run=self.there, out=self.out) for word in READERS[name]]

    def reader(self, name: str, **how: object) -> Said:
        """A reading command with nothing of an earlier one left."""
        shutil.rmtree(self.out, ignore_errors=True)
        return self.heal(self.reading(name), **how)

    def result(self, name: str) -> dict[str, str]:
        """Digests of what a reading command leaves: a folder, or the report."""
        if name == "report":
            return {path.name: sha256(path) for path in sorted((self.there / "report").iterdir())}
        return contents(self.out) if self.out.is_dir() else {}

    # The tries.

    def units(self) -> Iterator[Unit]:
        """All of them, in an order that has something of each kind early."""
        tracked = ("tracking.mode=offline",)
        runs = [
            Unit(f"kills {n}", lambda draw, n=n: self.killed(draw, tracked if n % 4 == 3 else ()))
            for n in range(-(-self.kills * 7 // 10 // KILLS_A_RUN))
        ]
        left = self.kills - len(runs) * KILLS_A_RUN
        reads = [
            Unit(f"kill {name} {n}", lambda draw, name=name: self.killed_reading(draw, name))
            for n in range(-(-max(left, 2) // 2))
            for name in ("export", "report")
        ]
        stops = [Unit("stops", self.stopped), Unit("stops reading", self.stopped_reading)]
        wrong = [
            Unit(f"mistake {number}", lambda draw, words=words, said=said: self.mistaken(words, said))
            for number, (words, said) in enumerate(mistakes.lines())
        ]
        damaged = [Unit(f"damage {n}", self.damaged) for n in range(self.damages)]
        disk = [Unit("disk", self.full_disk)]
        groups = [disk, stops, runs, reads, wrong, damaged]
        places = [
            (index / len(group), kind, unit) for kind, group in enumerate(groups) for index, unit in enumerate(group)
        ]
        yield from (unit for _, _, unit in sorted(places, key=lambda place: place[:2]))

    def ends_alike(self, more: tuple[str, ...] = ()) -> tuple[str, str]:
        """Continues the run to its end, and holds it against the undisturbed one: the outcome, and what was said."""
        said = self.heal(self.words("run.name=there", *more))
        if said.status:
            return WRONG, f"the same command did not continue: {said.last}"
        ignored = {"recipe.yaml"} if more else set()
        if names := [name for name in different(self.expected, contents(self.there)) if name not in ignored]:
            return WRONG, f"other bytes: {', '.join(names)}"
        if not storming.events_are_whole(self.there):
            return WRONG, "events.jsonl has a line that is not JSON"
        return SAME, ""

    def killed(self, draw: random.Random, more: tuple[str, ...]) -> list[Try]:
        """One run that is killed again and again, at moments drawn at random, and then continued to its end."""
        self.clear()
        kind = ", W&B offline" if more else ""
        rows, wrong = list[str](), ""
        for life in range(KILLS_A_RUN):
            said = self.heal(self.words("run.name=there", *more), after=draw.uniform(0.0, 8.0))
            rows.append(f"kill -9 in a run{kind}" if life == 0 else f"kill -9 in a continued run{kind}")
            if said.status not in (0, -signal.SIGKILL):
                wrong = f"life {life + 1}: {said.last}"
            try:
                RunFolder(self.there).readable() if (self.there / "recipe.yaml").is_file() else None
            except UserError as error:
                wrong = f"after life {life + 1}: {error}"
        outcome, reason = self.ends_alike(more)
        return [Try(row, WRONG if wrong else outcome, "killed at random moments", wrong or reason) for row in rows]

    def killed_reading(self, draw: random.Random, name: str) -> list[Try]:
        """An export or a report that is killed; the same command then leaves what it leaves undisturbed."""
        self.put(self.whole)
        undisturbed = self.reader(name)
        self.put(self.whole)
        self.reader(name, after=draw.uniform(0.0, undisturbed.seconds))
        half = name == "export" and self.result(name) not in ({}, self.read[name][1])
        again = self.heal(self.reading(name))
        alike = not half and again.status == 0 and self.result(name) == self.read[name][1]
        return [Try(f"kill -9 in heal {name}", SAME if alike else WRONG, "a part of it" if half else "", again.last)]

    def stopped(self, draw: random.Random) -> list[Try]:
        """One run that is told to stop in each of its steps."""
        self.clear()
        tries = []
        for done in range(steps_done(RunFolder(self.whole))):
            said = self.heal(
                self.line,
                number=signal.SIGTERM,
                when=lambda done=done: (
                    steps_done(RunFolder(self.there)) >= done and (self.there / "recipe.yaml").is_file()
                ),
            )
            tries.append(self.answered("SIGTERM in a step", f"after {done} steps", said))
        outcome, reason = self.ends_alike()
        return [one if one.outcome == WRONG else Try(one.row, outcome, one.what, reason or one.said) for one in tries]

    def stopped_reading(self, draw: random.Random) -> list[Try]:
        """Report, export, chat and compare that are told to stop."""
        tries = []
        for name in READERS:
            self.put(self.whole)
            said = self.reader(name, number=signal.SIGTERM, after=draw.uniform(0.3, 1.0))
            again = self.reader(name)
            one = self.answered("SIGTERM in heal report, export, compare, chat", name, said)
            alike = again.status == 0 and self.result(name) == self.read[name][1]
            tries.append(one if alike else Try(one.row, WRONG, name, again.last))
        return tries

    def answered(self, row: str, what: str, said: Said) -> Try:
        """Whether a stop was answered in time, in one line, with the exit status that says so (0: it was over)."""
        alright = said.status == 0 or (said.status == STOPPED and said.err.count("\n") == 1)
        if not alright or (said.seconds > ANSWERED and said.status):
            return Try(row, WRONG, what, f"exit {said.status} after {said.seconds:.1f} s: {said.last}")
        return Try(row, SAME, what, f"{said.seconds:.2f} s" if said.status else "it was over")

    def mistaken(self, words: list[str], expected: str) -> list[Try]:
        """A command line or a file that is a mistake: one line that says so, exit status 2, and nothing written."""
        before = sorted(map(str, self.files.rglob("*")))
        said = self.heal(words, place=self.files)
        written = sorted(map(str, self.files.rglob("*"))) != before
        alright = said.refused and said.status == 2 and expected in said.err and not written
        what = (words[-1] if words[0] == "train" else " ".join(words))[:80]
        return [
            Try("mistakes in words and files", REFUSED if alright else WRONG, what, (said.err.strip() or said.last))
        ]

    def damaged(self, draw: random.Random) -> list[Try]:
        """A file of a run is damaged; the same command continues, or a reading command reads."""
        reader = draw.choice([None, None, None, *READERS])
        template = self.whole if reader else draw.choice([self.whole, self.whole, self.half])
        name = draw.choice(sorted(str(path.relative_to(template)) for path in template.rglob("*") if path.is_file()))
        empty = (template / name).stat().st_size == 0
        damage = draw.choice([one for one in DAMAGES if not (empty and one.of_content)])
        self.put(template)
        damage.do(self.there / name, self.other / name, draw)
        before = contents(self.there)
        said = self.reader(reader) if reader else self.heal(self.line)
        return [Try(f"damaged file, then heal {reader or 'train'}", *self.after_damage(said, reader, name, before))]

    def after_damage(self, said: Said, reader: str | None, name: str, before: dict[str, str]) -> tuple[str, str, str]:
        """The outcome of a command on a run whose file `name` is damaged, the file, and what was said."""
        after, line = contents(self.there), said.err.strip()
        if said.status:
            changed = [other for other in different(before, after) if other != name]
            alright = said.refused and str(self.there) in line and not changed
            return REFUSED if alright else WRONG, name, f"{line} {', '.join(changed)}".strip()
        if reader:
            alike = (said.timeless, self.result(reader)) == self.read[reader]
            return SAME if alike else WRONG, name, line
        names = different(self.expected, after)
        alike = not names and storming.events_are_whole(self.there)
        return SAME if alike else WRONG, name, ", ".join(names)

    def full_disk(self, draw: random.Random) -> list[Try]:
        """A run on a disk that is full at some write, and again, until there is room for the whole of it."""
        self.clear()
        tries, size = list[Try](), DISK
        if subprocess.run([*MOUNT, f"size={size:.0f}k", "tmpfs", str(self.work)], capture_output=True).returncode:
            print("full disk: left out, because nothing can be mounted here")
            return []
        try:
            while (said := self.heal(self.line)).status:
                alright = said.refused and "No space left on device" in said.err and str(self.work) in said.err
                tries.append(Try("full disk", REFUSED if alright else WRONG, f"{size:.0f} KiB", said.err.strip()))
                size *= GROWTH
                subprocess.run([*MOUNT, f"remount,size={size:.0f}k", "tmpfs", str(self.work)], check=True)
            names = different(self.expected, contents(self.there))
            alike = not names and storming.events_are_whole(self.there)
            tries.append(Try("full disk, then room", SAME if alike else WRONG, f"{size:.0f} KiB", ", ".join(names)))
        finally:
            subprocess.run(["umount", str(self.work)], check=True)
        return tries


def table(tries: list[Try]) -> str:
    """One line a row, in the order in which they came up, and the sum."""
    rows = sorted({one.row for one in tries})
    counts = [
        [row, len(mine), *(sum(one.outcome == kind for one in mine) for kind in (SAME, REFUSED, WRONG))]
        for row in rows
        if (mine := [one for one in tries if one.row == row])
    ]
    counts.append(["all", *(sum(count[column] for count in counts) for column in range(1, 5))])
    lines = ["| | tried | same bytes | refused | wrong |", "| --- | --: | --: | --: | --: |"]
    return "\n".join([*lines, *("| " + " | ".join(map(str, count)) + " |" for count in counts)]) + "\n"


def page(tries: list[Try], arguments: argparse.Namespace, left: int, minutes: float) -> str:
    """docs/reliability.md."""
    stops = [float(one.said.split()[0]) for one in tries if one.row.startswith("SIGTERM") and one.said.endswith(" s")]
    unfinished = f" {left} groups of tries were left out when the time was up." if left else ""
    where = f"{platform.machine()}, {os.cpu_count()} cores, {minutes:.0f} minutes"
    return f"""# Reliability

Written by `{arguments.command}` ({where}).{unfinished}
Every try is a process of its own that runs the command itself on a tiny model with random weights.

- *same bytes*: completions, adapters, metrics, vectors, figures and the exported adapter equal those of an undisturbed
  run byte for byte (of the rest, only what holds times is left out).
- *refused*: one line that names the file or the key, exit status 1 or 2, no traceback, and no other file changed.
- *wrong*: anything else.

{table(tries)}
A SIGTERM was answered within {max(stops, default=0.0):.1f} s at the most ({ANSWERED:g} s are allowed).
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--damages", type=int, default=200)
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "storm")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "reliability.md")
    arguments = parser.parse_args()
    arguments.command = (
        f"python scripts/storm.py --seed {arguments.seed} --kills {arguments.kills} --damages {arguments.damages}"
    )
    start = time.monotonic()
    storm = Storm(arguments.folder.absolute(), arguments.kills, arguments.damages)
    storm.prepare()
    journal = read_jsonl(storm.journal) if storm.journal.is_file() else []
    tries, left = [Try(**one) for entry in journal for one in entry["tries"]], 0
    done = {entry["unit"] for entry in journal}
    units = [unit for unit in storm.units() if unit.name not in done]
    print(f"{len(units)} groups of tries to go; {storm.folder}", flush=True)
    for number, unit in enumerate(units, start=1):
        if (minutes := (time.monotonic() - start) / 60) > arguments.minutes:
            left = len(units) - number + 1
            break
        made = unit.run(random.Random(derive_seed(arguments.seed, unit.name)))
        append_line(storm.journal, json.dumps({"unit": unit.name, "tries": [asdict(one) for one in made]}).encode())
        tries += made
        for one in made:
            if one.outcome == WRONG:
                print(f"WRONG  {one.row}: {one.what}: {one.said}", flush=True)
        if number % 5 == 0:
            wrong = sum(one.outcome == WRONG for one in tries)
            print(f"{number} of {len(units)}, {minutes:.0f} min, {wrong} wrong", flush=True)
    arguments.page.write_text(page(tries, arguments, left, (time.monotonic() - start) / 60), encoding="utf-8")
    print(table(tries))
    raise SystemExit(any(one.outcome == WRONG for one in tries))


if __name__ == "__main__":
    main()
