"""Files are written whole or not at all, and read with their name in the error."""

import errno
import os
from pathlib import Path

import pytest

from heal.errors import UserError
from heal.records import jsonl_bytes, read_json, read_jsonl
from heal.run.files import clear_temporary, write_atomic, write_files
from tests.folders import files_below


def test_a_file_is_written_whole_and_nothing_else_is_left(tmp_path: Path):
    path = tmp_path / "a" / "b.bin"
    for content in (b"first", b"", b"second" * 1000):
        write_atomic(path, content)
        assert path.read_bytes() == content
        assert files_below(tmp_path) == {"a/b.bin"}


def test_files_are_written_together_and_named_one_a_line(tmp_path: Path):
    said = write_files(tmp_path / "out", {"a.txt": b"a", "more/b.txt": b"b"})
    assert said.splitlines() == [str(tmp_path / "out" / "a.txt"), str(tmp_path / "out" / "more" / "b.txt")]
    assert files_below(tmp_path / "out") == {"a.txt", "more/b.txt"}
    assert write_files(tmp_path / "nothing", {}) == ""
    assert (tmp_path / "nothing").is_dir()


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path):
    path = tmp_path / "b.bin"
    write_atomic(path, b"old")
    with pytest.raises(TypeError):
        write_atomic(path, "not bytes")  # type: ignore[arg-type]
    assert path.read_bytes() == b"old"
    assert files_below(tmp_path) == {"b.bin"}


def test_a_full_disk_is_an_error_that_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left") as caught:
        write_atomic(tmp_path / "b.bin", b"new")
    assert caught.value.filename == str(tmp_path / "b.bin")
    assert files_below(tmp_path) == set()


def test_what_a_killed_process_left_half_written_is_cleared_and_results_are_not(tmp_path: Path):
    (tmp_path / "rounds").mkdir()
    (tmp_path / "rounds" / ".metrics.json.123.tmp").write_bytes(b"half")
    (tmp_path / "rounds" / ".export.tmp").mkdir()
    (tmp_path / "rounds" / ".export.tmp" / "x").write_bytes(b"half")
    (tmp_path / "rounds" / "metrics.json").write_bytes(b"{}")
    clear_temporary(tmp_path)
    assert files_below(tmp_path) == {"rounds/metrics.json"}
    assert os.listdir(tmp_path / "rounds") == ["metrics.json"]


def test_rows_come_back_from_lines_as_they_went(tmp_path: Path):
    rows = [{"text": "one\ntwo  three", "values": [1, 2.5, None]}, {"text": "“é”\u2028\u0085 爱", "values": []}]
    write_atomic(tmp_path / "rows.jsonl", jsonl_bytes(rows))
    assert read_jsonl(tmp_path / "rows.jsonl") == rows


def test_a_file_that_is_truncated_foreign_or_not_there_is_named(tmp_path: Path):
    path = tmp_path / "x.json"
    for read in (read_json, read_jsonl):
        for content in (b'{"a": 1', b'{"a": 1}\n{"b"', b"\xff\xfe\x00", b"PK\x03\x04"):
            path.write_bytes(content)
            with pytest.raises(UserError, match=r"x\.json: truncated or not JSON"):
                read(path)
        with pytest.raises(UserError, match=r"y\.json: no such file$"):
            read(tmp_path / "y.json")
