"""What is shown while heal works: each step, its progress, the time left, and its result."""

import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress

from rich.console import Console as RichConsole
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from heal.memory import memory_told

_PLAIN_EVERY = 10.0  # seconds between progress lines when the output is not a terminal
_LONGEST_LINE = 2000  # characters of an error


class StepLine:
    """One running step: `progress` reports how far it is, `result` what came out."""

    def __init__(self, show) -> None:
        self._show = show
        self.finding = ""

    def progress(self, done: int, total: int) -> None:
        self._show(done, total)

    def result(self, text: str) -> None:
        """Sets the one line that remains when the step is over."""
        self.finding = text


class Console:
    """Progress bars and tables on a terminal; plain lines in a log file or pipe."""

    def __init__(self) -> None:
        self._rich = RichConsole(highlight=False, soft_wrap=True)

    @property
    def is_terminal(self) -> bool:
        return self._rich.is_terminal

    def say(self, text: str) -> None:
        """One plain line; model text in it is never read as markup."""
        self._rich.print(Text(text))

    def warn(self, *texts: str) -> None:
        """A warning a line; nothing where there is none."""
        for text in texts:
            self._rich.print(Text(f"warning: {text}", style="yellow"))

    def title(self, text: str) -> None:
        self._rich.print()
        self._rich.print(Text(text, style="bold"))

    @contextmanager
    def step(self, name: str) -> Iterator[StepLine]:
        """Shows a step while it runs, then one line with its result and its duration.

        Raises:
            RoundError: memory ran out in it.
        """
        start = time.perf_counter()
        if self.is_terminal:
            columns = (TextColumn("  {task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            with Progress(*columns, console=self._rich, transient=True) as bar:
                task = bar.add_task(f"{name:<10}", total=None)
                line = StepLine(lambda done, total: bar.update(task, completed=done, total=total))
                with memory_told(f"in the step '{name}'"):
                    yield line
        else:
            line = StepLine(_PlainProgress(name, start))
            with memory_told(f"in the step '{name}'"):
                yield line
        self.say(f"  {name:<10} {line.finding}  ({_duration(time.perf_counter() - start)})")

    def table(self, title: str, rows: Mapping[str, str]) -> None:
        """A small two-column table."""
        if not self.is_terminal:
            self.say(f"  {title}: " + " | ".join(f"{name} {value}" for name, value in rows.items()))
            return
        table = Table(title=title, title_justify="left", show_header=False, pad_edge=False)
        for name, value in rows.items():
            table.add_row(name, Text(value))
        self._rich.print(table)


class _PlainProgress:
    """Prints the progress of a step, at most once every few seconds."""

    def __init__(self, name: str, start: float) -> None:
        self._name, self._start, self._last = name, start, start

    def __call__(self, done: int, total: int) -> None:
        now = time.perf_counter()
        if done == 0:  # the countable part of the work begins
            self._start = now
            return
        if now - self._last < _PLAIN_EVERY or done >= total:
            return
        self._last = now
        left = (now - self._start) / done * (total - done)
        print(f"  {self._name:<10} {done}/{total}, about {_duration(left)} left", flush=True)


def counted(number: int, noun: str) -> str:
    """`1 round`, `2 rounds`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _duration(seconds: float) -> str:
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{int(seconds // 60)} min {int(seconds % 60):02d} s"


def fail(text: str, status: int) -> None:
    """One line on standard error, which leaves out the middle of a very long text, then exit."""
    line = "\\n".join(text.splitlines())
    if len(line) > _LONGEST_LINE:
        line = f"{line[: _LONGEST_LINE // 2]} ... {line[-_LONGEST_LINE // 2 :]}"
    with suppress(OSError):  # nobody may be reading
        print(f"heal: {line}", file=sys.stderr, flush=True)
    raise SystemExit(status)
