"""Bad command lines, one after another: each is refused in one line with exit 2, and nothing is written."""

from pathlib import Path

import pytest

from heal.models import load as loading
from tests import mistakes
from tests.cases import case
from tests.commanded import heal


def contents(folder: Path) -> set[str]:
    return {str(path) for path in folder.rglob("*")}


def test_every_bad_command_line_is_refused_in_one_line_and_writes_nothing(
    tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No command gets as far as a model's weights."""

    def read(*_):
        raise AssertionError("the weights are read")

    monkeypatch.setattr(loading, "_load_weights", read)
    monkeypatch.chdir(tmp_path)
    mistakes.prepare(tmp_path, tiny_folder)
    before = contents(tmp_path)
    for words, said in mistakes.lines():
        with case(*(word[:60] for word in words)):
            done = heal(*words)
            assert (done.returncode, len(done.stderr.splitlines())) == (2, 1), done.stderr
            assert said in done.stderr
            assert contents(tmp_path) == before
