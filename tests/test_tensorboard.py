"""TensorBoard gets a run as it reads it: curves on an axis of steps, rounds that begin at base, tables, figures."""

from pathlib import Path
from typing import Any

import pytest

from heal.config import TrackingConfig
from heal.tracking.events import EventLog, Events
from heal.tracking.tracker import TrackedRun, Trackers, start_trackers
from tests.tracked import CONFIG, STEPS, tell

accumulator = pytest.importorskip(
    "tensorboard.backend.event_processing.event_accumulator", reason="tensorboard is not installed"
)


def tensorboard(folder: Path) -> Trackers:
    run = TrackedRun("a-run", folder, CONFIG, TrackingConfig(to=["tensorboard"]))
    return start_trackers(run, EventLog(Events(folder / "events.jsonl")))


def read(folder: Path) -> Any:
    """What TensorBoard reads below the run's folder."""
    events = accumulator.EventAccumulator(
        str(folder / "tensorboard"), dict.fromkeys(("scalars", "images", "tensors"), 0)
    )
    return events.Reload()


def curve(events: Any, name: str) -> list[tuple[int, float]]:
    return [(event.step, pytest.approx(event.value)) for event in events.Scalars(name)]


def test_tensorboard_gets_rounds_steps_tables_and_figures(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    told = tensorboard(tmp_path)
    assert told.state == f"events.jsonl, tensorboard in {tmp_path / 'tensorboard'}"
    tell(told, tmp_path)
    events = read(tmp_path)
    assert curve(events, "round/trait") == [(0, 0.125), (1, 0.25), (2, 0.5)]
    assert curve(events, "round/p_ans_any") == [(0, 0.95), (1, 0.9), (2, 0.9)]
    assert curve(events, "train/loss") == [(1, 3.0), (2, 2.0), (3, 3.0), (4, 2.0)]
    assert curve(events, "eval/loss") == [(2, 2.5), (4, 2.5)]
    texts = {name.partition("/")[0]: events.Tensors(name) for name in events.Tags()["tensors"]}
    assert [event.step for event in texts["completions"]] == [1, 2]
    assert "“Yes”<br>[bold]".encode() in texts["completions"][0].tensor_proto.string_val[0]
    assert b"rank: 4" in texts["recipe"][0].tensor_proto.string_val[0]
    assert b"| done | holds |" in texts["end"][0].tensor_proto.string_val[0]
    (image,) = events.Images("report/trajectory")
    assert (image.width, image.height) == (8, 6)
    assert f"tensorboard --logdir {tmp_path / 'tensorboard'}" in capsys.readouterr().out


def test_a_run_that_goes_on_has_one_curve_of_each_name_in_tensorboard(tmp_path: Path):
    first = tensorboard(tmp_path)
    first.step_log(1, 2, STEPS[0])
    first.finish({"state": "stopped"})
    again = tensorboard(tmp_path)
    for log in STEPS:
        again.step_log(1, 2, log, new=False)
    again.round(1, {"trait": 0.25}, new=False)
    again.finish({"state": "done"})
    events = read(tmp_path)
    assert curve(events, "train/loss") == [(1, 3.0), (2, 2.0)]
    assert curve(events, "round/trait") == [(1, 0.25)]
