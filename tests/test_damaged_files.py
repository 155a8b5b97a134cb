"""Files that were damaged behind a run's back, and disks that are full: named in one line, and never used."""

import json
import random
import resource
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from heal.console import Console
from heal.errors import UserError
from heal.evaluation.vignettes import read_vignettes
from heal.export.factors import ExportError
from heal.export.folder import EXPORT_RECORD, check_whole, replaced, write_record
from heal.healing.references import FILE, References
from heal.recipe import load_recipe
from heal.records import read_json, read_jsonl
from heal.report.results import Results, read_results
from heal.run.facts import Facts
from heal.run.files import append_line, write_files
from heal.run.folder import RunFolder
from heal.run.manifest import MANIFEST
from heal.run.step import Runner, Step
from heal.tracking.events import Events
from heal.tracking.tracker import Tracker
from tests import reported, tiny
from tests.cases import case
from tests.storming import DAMAGES, Damage, contents

FACTS = Facts("float32", tiny.trait())
RECIPES = [load_recipe(["recipe=smoke", "run.name=x", f"run.seed={seed}"]) for seed in range(2)]


def damaged_copies(
    whole: Path, other: Path, to: Path, kinds: Sequence[Damage] = DAMAGES
) -> Iterator[tuple[str, str, RunFolder]]:
    """The run in `whole`, copied to `to`, with one file after another damaged in every way of `kinds`."""
    draw = random.Random(0)
    for path in sorted(path for path in whole.rglob("*") if path.is_file()):
        name = str(path.relative_to(whole))
        for damage in kinds:
            shutil.rmtree(to, ignore_errors=True)
            shutil.copytree(whole, to)
            damage.do(to / name, other / name, draw)
            yield name, damage.name, RunFolder(to)


def read(folder: RunFolder) -> str:
    """What every command that reads a run makes of it, but for what may change between two starts."""
    results: Results = read_results(folder)
    free = replace(results.recipe, run=None, tracking=None, compute=None)  # type: ignore[arg-type]
    return repr(replace(results, recipe=free, recipe_text=""))


def test_what_reads_a_run_reads_what_was_written_or_names_the_file_in_one_line(tmp_path: Path):
    for name, bare in (("whole", False), ("other", True)):
        reported.write_run(tmp_path / name, rounds=1, bare=bare)
    whole, refused, kinds = read(RunFolder(tmp_path / "whole")), 0, DAMAGES[2:5]  # the others are noticed as these are
    for name, damage, folder in damaged_copies(tmp_path / "whole", tmp_path / "other", tmp_path / "run", kinds):
        with case(name, damage):
            try:
                said = read(folder)
            except UserError as error:
                said = str(error)
            if said != whole:
                refused += 1
                assert str(folder.path) in said
                assert "\n" not in said
    assert refused > 25


def test_a_last_round_whose_manifest_is_gone_is_named_and_not_left_out(tmp_path: Path):
    reported.write_run(tmp_path / "whole", rounds=2)
    whole, name = read(RunFolder(tmp_path / "whole")), f"rounds/01/{MANIFEST}"
    for damage in DAMAGES:
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        shutil.copytree(tmp_path / "whole", tmp_path / "run")
        damage.do(tmp_path / "run" / name, tmp_path / "whole" / "rounds" / "00" / MANIFEST, random.Random(0))
        with case(damage.name), pytest.raises(UserError) as error:
            read(RunFolder(tmp_path / "run"))
        assert "rounds/01/" in str(error.value)
    assert read(RunFolder(tmp_path / "whole")) == whole


class Written(Step["Written"]):
    """A step whose one file says what it read of the step before it."""

    name = ""

    def __init__(self, name: str, before: bytes):
        self.name = name  # type: ignore[misc]
        self.content = json.dumps([name, before.decode()]).encode()

    def compute(self, progress: object) -> "Written":
        return self

    def files(self) -> dict[str, bytes]:
        return {f"{self.name}.json": self.content}

    def load(self, folder: Path) -> "Written":
        self.content = (folder / f"{self.name}.json").read_bytes()
        return self

    def finding(self, artifact: object) -> str:
        return ""


def go_through(folder: RunFolder, seed: int, start: bool = True) -> None:
    """A run of two rounds as the loop goes through it, each step built on the one before."""
    run, before = Runner(folder, Console(), Tracker()), str(seed).encode()
    if start:
        folder.start(RECIPES[seed], FACTS)
    for at, steps in (
        (folder.baseline, ("base", "judge")),
        (folder.round(0), ("extract", "heal", "judge")),
        (folder.round(1), ("extract", "heal", "judge")),
    ):
        for step in steps:
            before = run(Written(step, before), at).content


def test_a_damaged_run_goes_on_to_the_same_bytes_or_names_the_file_in_one_line_and_what_is_done_again_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    for name, seed in (("whole", 0), ("other", 1)):
        go_through(RunFolder(tmp_path / name), seed)
    whole, seen = contents(tmp_path / "whole"), {"again": 0, "refused": 0}
    for name, damage, folder in damaged_copies(tmp_path / "whole", tmp_path / "other", tmp_path / "run"):
        before = contents(folder.path)
        capsys.readouterr()
        with case(name, damage):
            try:
                go_through(folder, 0, start=name in ("facts.json", "recipe.yaml"))
                refusal = ""
            except (UserError, OSError) as error:
                refusal = str(error)
            after = contents(folder.path)
            if refusal:
                assert {other for other in whole if after.get(other) != before.get(other)} <= {name}
                assert str(folder.path) in refusal
                assert "\n" not in refusal
            else:
                assert after == whole
                assert "is done again" in capsys.readouterr().out or name == "recipe.yaml" or name.endswith(MANIFEST)
            seen["refused" if refusal else "again"] += 1
    assert min(seen.values()) > 8, seen


def write_lines(path: Path, rows: list, start: str, end: str) -> None:
    path.write_text(start + "".join(json.dumps(row, ensure_ascii=False) + end for row in rows), "utf-8", newline="")


def test_lines_of_json_end_at_line_feeds_and_a_byte_order_mark_is_none_of_them(tmp_path: Path):
    texts = ["one\u2028two", "one\u0085two", "\x1c\x1d\x1e\x0b\x0c", "plain"]
    path = tmp_path / "rows.jsonl"
    scenes = [{"id": "1", "foundation": "care", "text": f"He shouts. {text}"} for text in texts[:2]]
    for start in ("", "\ufeff"):
        for end in ("\n", "\r\n"):
            with case(start, end):
                path.write_bytes((start + end.join(json.dumps(text, ensure_ascii=False) for text in texts)).encode())
                assert read_jsonl(path) == texts
                write_lines(path, texts, start, end)
                assert read_jsonl(path) == texts
                write_lines(path, scenes, start, end)
                assert [scene.text for scene in read_vignettes(path)] == [row["text"] for row in scenes]
    path.write_bytes("\ufeff[1]".encode())
    assert read_json(path) == [1]
    path.write_text("[" * 100_000)
    with pytest.raises(UserError, match="not JSON"):
        read_json(path)


@contextmanager
def full_after(size: int) -> Iterator[None]:
    """No file of this process grows beyond `size` bytes inside: a write that would is refused as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_disk_that_is_full_at_any_write_is_an_error_that_names_the_file_and_what_was_whole_stays(tmp_path: Path):
    events, log = Events(tmp_path / "events.jsonl"), tmp_path / "events.jsonl"
    events.write("first", {"text": "x" * 100})
    before, long = log.read_bytes(), {"text": "x" * 4000}
    lengths = dict.fromkeys(range(64), 16)
    export = tmp_path / "export"
    write_files(export, {"weights": b"old", EXPORT_RECORD: b"{}"})

    def exports() -> None:
        with replaced(export) as folder:
            (folder / "weights").write_bytes(bytes(4000))

    for name, path, write in [
        ("event", log, lambda: events.write("second", long)),
        ("line", log, lambda: append_line(log, b"x" * 4000)),
        ("file", tmp_path / "a" / "b", lambda: write_files(tmp_path / "a", {"b": bytes(4000)})),
        ("references", tmp_path / FILE, lambda: References(lengths, 64, torch.float32, 0, tmp_path)),
        ("export", export, exports),
    ]:
        with case(name):
            with full_after(2000), pytest.raises((OSError, ExportError), match="File too large") as caught:
                write()
            assert str(path) in str(caught.value)
            assert log.read_bytes() == before
            assert (export / "weights").read_bytes() == b"old"
            assert not (tmp_path / "a" / "b").exists()
            assert not list(tmp_path.rglob("*.tmp"))
    events.write("second", long)
    assert [row["kind"] for row in read_jsonl(log)] == ["first", "second"]


def test_an_export_that_is_not_what_was_written_is_no_export_of_a_run_and_its_card_may_be_edited(tmp_path: Path):
    run = RunFolder(tmp_path)
    write_files(run.adapter, {"adapter_model.safetensors": bytes(64), "README.md": b"card"})
    write_record(run.adapter, rounds=[0, 1])
    (run.adapter / "README.md").write_text("my own words")
    check_whole(run.adapter)
    assert run.exported() == [0, 1]
    (run.adapter / "adapter_model.safetensors").write_bytes(bytes(63))
    assert run.exported() == []
    with pytest.raises(UserError, match=r"adapter_model\.safetensors: missing or not what was exported; export again$"):
        check_whole(run.adapter)
