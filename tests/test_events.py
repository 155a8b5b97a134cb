"""The events of a run: whole lines, whatever a killed process left."""

import json
from pathlib import Path

from heal.records import read_jsonl
from heal.tracking.events import Events
from tests.cases import case


def test_events_are_lines_of_json_with_time_and_kind(tmp_path: Path):
    events = Events(tmp_path / "run" / "events.jsonl")
    events.write("stage", {"found": "a\nb", "where": Path("x")})
    events.write("end", {"state": "done"})
    first, second = read_jsonl(tmp_path / "run" / "events.jsonl")
    assert (first["kind"], first["found"], first["where"]) == ("stage", "a\nb", "x")
    assert second["kind"] == "end"
    assert 0 < first["time"] <= second["time"]


def test_a_later_process_adds_to_the_events(tmp_path: Path):
    for number in range(3):
        Events(tmp_path / "events.jsonl").write("start", {"number": number})
    assert [event["number"] for event in read_jsonl(tmp_path / "events.jsonl")] == [0, 1, 2]


def test_a_line_that_a_killed_process_left_half_written_is_cut(tmp_path: Path):
    for cut in range(1, 20):
        with case(cut):
            path = tmp_path / str(cut) / "events.jsonl"
            Events(path).write("one", {})
            whole = path.read_bytes()
            Events(path).write("two", {"text": "é" * 20})
            path.write_bytes(path.read_bytes()[:-cut])
            Events(path).write("three", {})
            assert path.read_bytes().startswith(whole)
            assert [json.loads(line)["kind"] for line in path.read_bytes().splitlines()] == ["one", "three"]


def test_whole_events_are_never_cut(tmp_path: Path):
    path = tmp_path / "events.jsonl"
    Events(path).write("one", {})
    before = path.read_bytes()
    Events(path)
    assert path.read_bytes() == before
