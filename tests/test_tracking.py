"""What events.jsonl and W&B get of a run, whichever trackers it is told to."""

import json
from pathlib import Path

import pytest
from wandb.proto.wandb_internal_pb2 import Record

from heal import choices
from heal.config import TrackingConfig
from heal.errors import UserError
from heal.keys import help_text
from heal.recipe import load_recipe
from heal.records import read_jsonl
from heal.tracking import trackers as package
from heal.tracking.events import EventLog, Events
from heal.tracking.tracker import TRACKERS, TrackedRun, Tracker, Trackers, require_trackers, start_trackers
from tests.cases import case
from tests.tracked import (  # noqa: F401
    BASE,
    CONFIG,
    ROUNDS,
    ROWS,
    STEPS,
    history,
    of_kind,
    own_folders,
    records,
    tell,
    track,
    tracker,
)


@pytest.fixture(scope="module")
def offline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that was tracked offline."""
    folder = tmp_path_factory.mktemp("offline")
    track(folder, "offline")
    return folder


@pytest.fixture(scope="module")
def everything(offline: Path) -> list[Record]:
    """What W&B wrote of it."""
    return records(offline)


# What is written.


def test_disabled_writes_the_events_and_nothing_else(tmp_path: Path):
    track(tmp_path, "disabled")
    assert {path.name for path in tmp_path.iterdir()} == {"events.jsonl", "trajectory.png", "adapter"}


def test_the_events_hold_the_whole_run_in_order_and_count_rounds_from_one(offline: Path):
    events = read_jsonl(offline / "events.jsonl")
    round_kinds = ["training"] * 3 + ["stage", "round"]
    assert [event["kind"] for event in events] == ["start", "round", *round_kinds, *round_kinds, "end"]
    assert events[0]["config"] == CONFIG
    assert events[0]["wandb"] == "offline"
    assert events[-1]["verdict"] == "holds"

    events = read_jsonl(offline / "events.jsonl")
    assert [event["round"] for event in events if event["kind"] == "round"] == [0, 1, 2]
    steps = [event for event in events if event["kind"] == "training"]
    assert [(step["round"], step["rounds_trained"]) for step in steps] == [
        (1, 0.25), (1, 0.5), (1, 0.5), (2, 1.25), (2, 1.5), (2, 1.5),
    ]  # fmt: skip
    assert [step.get("train/loss") for step in steps] == [3.0, 2.0, None] * 2


def test_the_events_are_the_same_with_and_without_wandb(offline: Path, tmp_path: Path):
    track(tmp_path, "disabled")
    both = [
        [{k: v for k, v in event.items() if k not in ("time", "wandb")} for event in read_jsonl(each / "events.jsonl")]
        for each in (offline, tmp_path)
    ]
    assert both[0] == both[1]


def test_wandb_gets_the_config_the_name_the_project_and_the_axes(everything: list[Record]):
    (run,) = of_kind(everything, "run")
    config = {item.key: json.loads(item.value_json) for item in run.config.update}
    assert {name: config[name] for name in CONFIG} == CONFIG
    assert (run.project, run.display_name, run.run_group) == ("heal-tests", "a-run", "a-run")

    axes = {metric.glob_name: metric.step_metric for metric in of_kind(everything, "metric") if metric.glob_name}
    assert axes == {"round/*": "round", "train/*": "rounds_trained", "eval/*": "rounds_trained"}


def test_wandb_gets_every_training_step_and_round_on_axes_that_never_run_backwards(everything: list[Record]):
    steps = [row for row in history(everything) if "rounds_trained" in row]
    assert [row["rounds_trained"] for row in steps] == [0.25, 0.5, 0.5, 1.25, 1.5, 1.5]
    assert [row.get("train/loss") for row in steps] == [3.0, 2.0, None] * 2
    assert [row.get("eval/loss") for row in steps] == [None, None, 2.5] * 2

    axis = [row["rounds_trained"] for row in history(everything) if "rounds_trained" in row]
    assert axis == sorted(axis)

    rounds = [row for row in history(everything) if "round" in row]
    values = [{name.removeprefix("round/"): row[name] for name in row if name.startswith("round/")} for row in rounds]
    assert dict(zip([row["round"] for row in rounds], values, strict=True)) == {
        number: {name.removeprefix("healed/"): value for name, value in told.items()}
        for number, told in {0: BASE, **ROUNDS}.items()
    }


def test_wandb_gets_a_table_a_round_with_every_row(offline: Path, everything: list[Record]):
    keys = {key.split("|")[0] for row in history(everything) for key in row if key.endswith("|_type")}
    assert {"completions/round_01", "completions/round_02"} <= keys
    files = sorted((offline / "wandb").rglob("*.table.json"))
    assert len(files) == 2
    for path in files:
        table = json.loads(path.read_text())
        assert table["columns"] == list(ROWS[0])
        assert table["data"] == [list(row.values()) for row in ROWS]


def test_wandb_gets_the_figure_the_adapter_as_an_artifact_and_the_end(everything: list[Record]):
    (row,) = [row for row in history(everything) if "report/trajectory|_type" in row]
    assert row["report/trajectory|_type"] == "image-file"
    assert (row["report/trajectory|width"], row["report/trajectory|height"]) == (8, 6)

    (artifact,) = [each for each in of_kind(everything, "artifact") if each.type == "adapter"]
    assert artifact.name == "a-run-adapter"
    assert [entry.path for entry in artifact.manifest.contents] == ["adapter_config.json"]

    summary = {item.key: item.value_json for record in of_kind(everything, "summary") for item in record.update}
    assert (json.loads(summary["state"]), json.loads(summary["verdict"])) == ("done", "holds")
    assert of_kind(everything, "exit")[0].exit_code == 0


def test_an_artifact_is_kept_whatever_the_run_is_called(tmp_path: Path):
    for number, (name, kept) in enumerate(
        (
            ("nll-love-embedded-s0-tau=0.3", "nll-love-embedded-s0-tau_0.3-adapter"),
            ("my run/für=alle", "my_run_f_r_alle-adapter"),
            ("x" * 200, "x" * 120 + "-adapter"),
        )
    ):
        with case(name):
            folder = tmp_path / str(number)
            (folder / "adapter").mkdir(parents=True)
            (folder / "adapter" / "adapter_config.json").write_text("{}")
            told = tracker(folder, "offline", name)
            told.artifact(f"{name}-adapter", "adapter", folder / "adapter")
            told.finish({})
            assert [artifact.name for artifact in of_kind(records(folder), "artifact")] == [kept]


def test_what_an_earlier_process_wrote_goes_to_wandb_alone(tmp_path: Path):
    told = tracker(tmp_path, "offline")
    told.step_log(1, 2, STEPS[0], new=False)
    told.round(1, {"trait": 0.3}, new=False)
    told.finish({})
    assert [event["kind"] for event in read_jsonl(tmp_path / "events.jsonl")] == ["start", "end"]
    rows = history(records(tmp_path))
    assert [row["train/loss"] for row in rows if "train/loss" in row] == [3.0]
    assert [row["round/trait"] for row in rows if "round/trait" in row] == [0.3]


def test_a_table_without_rows_is_left_out(tmp_path: Path):
    told = tracker(tmp_path, "offline")
    told.table("outputs", [], 1)
    told.finish({})
    assert history(records(tmp_path)) == []


def test_finishing_twice_is_no_error(tmp_path: Path):
    told = tracker(tmp_path, "offline")
    told.finish({"state": "done"})
    told.finish({"state": "stopped"})
    ends = [event["state"] for event in read_jsonl(tmp_path / "events.jsonl") if event["kind"] == "end"]
    assert ends == ["done", "stopped"]


# Several trackers, and a new one.


class Heard(Tracker):
    """Keeps what it is told."""

    state = "listening"

    def __init__(self) -> None:
        self.calls: list[tuple[object, ...]] = []

    def event(self, *told: object) -> None:
        self.calls.append(("event", *told))

    def step_log(self, *told: object) -> None:
        self.calls.append(("step_log", *told))

    def round(self, *told: object) -> None:
        self.calls.append(("round", *told))

    def table(self, *told: object) -> None:
        self.calls.append(("table", *told))

    def figure(self, *told: object) -> None:
        self.calls.append(("figure", *told))

    def artifact(self, *told: object) -> None:
        self.calls.append(("artifact", *told))

    def finish(self, *told: object) -> None:
        self.calls.append(("finish", *told))


def test_several_trackers_are_all_told_everything(tmp_path: Path):
    heard = [Heard(), Heard()]
    told = Trackers({"one": heard[0], "silent": Tracker(), "other": heard[1]})
    tell(told, tmp_path)
    calls = [name for name, *_ in heard[0].calls]
    assert calls == ["round", *[*["step_log"] * 3, "event", "round", "table"] * 2, "figure", "artifact", "finish"]
    assert heard[0].calls == heard[1].calls
    assert heard[0].calls[1] == ("step_log", 1, 2, STEPS[0], True)
    assert told.state == "one listening, silent on, other listening"


def test_a_tracker_that_fails_is_one_warning_and_the_others_hear_the_rest(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    class Full(Heard):
        def round(self, *told: object) -> None:
            raise OSError(28, "No space left on device")

    full, heard = Full(), Heard()
    told = Trackers({"full": full, "other": heard})
    tell(told, tmp_path)
    assert (len(full.calls), len(heard.calls)) == (0, 1 + 2 * 6 + 3)
    assert told.state == "full off, other listening"
    said = "warning: full is off ([Errno 28] No space left on device); events.jsonl has everything\n"
    assert capsys.readouterr().out == said


def test_a_tracker_whose_package_is_missing_is_refused_with_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch,
):
    require_trackers(["wandb"])
    monkeypatch.setattr("heal.tracking.tracker.find_spec", lambda package: None)
    for name in ("tensorboard", "trackio"):
        with case(name), pytest.raises(UserError, match=f"tracking.to={name}: .* not installed: pip install {name}"):
            require_trackers(["wandb", name])


def test_a_run_may_be_told_to_nobody(tmp_path: Path):
    run = TrackedRun("a-run", tmp_path, CONFIG, TrackingConfig(to=[], mode="online"))
    tell(start_trackers(run, EventLog(Events(tmp_path / "events.jsonl"))), tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"events.jsonl", "trajectory.png", "adapter"}


LINES = '''"""lines: the rounds as lines of text."""

from heal.tracking.tracker import Tracker


class Lines(Tracker):
    state = "in rounds.txt"

    def __init__(self, run):
        self.path = run.folder / "rounds.txt"

    def round(self, number, values, new=True):
        with open(self.path, "a") as file:
            file.write(f"{number} {values['trait']:.2f}\\n")


start = Lines
'''


def test_a_new_tracker_is_one_file(tmp_path: Path):
    """It is offered by --help, accepted by the recipe, started, told, and named on the console and in the events."""
    (tmp_path / "trackers").mkdir()
    (tmp_path / "trackers" / "lines.py").write_text(LINES)
    package.__path__.append(str(tmp_path / "trackers"))
    choices.names.cache_clear()
    try:
        assert "lines: the rounds as lines of text." in help_text()
        settings = load_recipe(["tracking.to=[lines,wandb]", "tracking.mode=disabled"]).tracking
        with pytest.raises(UserError, match="did you mean 'lines'"):
            load_recipe(["tracking.to=[line]"])
        run = TrackedRun("a-run", tmp_path, CONFIG, settings)
        told = start_trackers(run, EventLog(Events(tmp_path / "events.jsonl")))
        tell(told, tmp_path)
    finally:
        package.__path__.remove(str(tmp_path / "trackers"))
        choices.names.cache_clear()
    assert (tmp_path / "rounds.txt").read_text() == "0 0.12\n1 0.25\n2 0.50\n"
    assert told.state == "events.jsonl, lines in rounds.txt, wandb disabled"
    started = read_jsonl(tmp_path / "events.jsonl")[0]
    assert (started["lines"], started["wandb"]) == ("in rounds.txt", "disabled")


def test_every_tracker_says_what_it_is():
    assert "wandb" in choices.names(TRACKERS)
    for name in choices.names(TRACKERS):
        with case(name):
            assert choices.summary(TRACKERS, name).startswith(f"{name}: ")
            assert callable(choices.load(TRACKERS, name, "start"))
