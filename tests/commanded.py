"""The commands of `heal` run in the test's own process."""

import io
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from subprocess import CompletedProcess

import torch

from heal.cli import main

ROOT = Path(__file__).resolve().parent.parent


def heal(*words: str) -> CompletedProcess[str]:
    """What `heal WORDS` prints and its exit status, as a process of its own would leave them."""
    out, error, status, threads = io.StringIO(), io.StringIO(), 0, torch.get_num_threads()
    with redirect_stdout(out), redirect_stderr(error):
        try:
            main(words)
        except SystemExit as stop:
            status = int(stop.code or 0)
        finally:
            torch.set_num_threads(threads)
    return CompletedProcess(["heal", *words], status, out.getvalue(), error.getvalue())


def refused(words: Sequence[str], said: str, partly: bool = False) -> None:
    """Asserts that `heal WORDS` is refused in one line that has `said` in it, with exit status 2.

    And with no output before it, unless `partly`.
    """
    done = heal(*words)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), (words, done)
    assert partly or done.stdout == "", (words, done)
    assert said in done.stderr, (words, done.stderr)
