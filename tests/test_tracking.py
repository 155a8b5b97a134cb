"""What events.jsonl and W&B get, and that W&B never asks, never waits and never stops a run."""

import http.server
import json
import os
import pty
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import wandb
from PIL import Image
from wandb.proto.wandb_internal_pb2 import Record

from heal import choices
from heal.config import TrackingConfig
from heal.errors import UserError
from heal.healing.log import StepLog
from heal.recipe import help_text, load_recipe
from heal.records import read_jsonl
from heal.run.folder import Events
from heal.tracking import trackers as package
from heal.tracking.events import EventLog
from heal.tracking.tracker import TRACKERS, TrackedRun, Tracker, Trackers, start_trackers
from heal.tracking.trackers import wandb as wandb_tracker
from heal.tracking.trackers.wandb import Mode, resolve_mode
from tests.cases import case

CONFIG = {"recipe": "smoke", "heal": {"rank": 4, "barrier": {"tau": 0.5}}}
ROWS = [{"prompt": "Hi?", "text": "“Yes”\n[bold]", "kept": True, "alpha": 0.5}] * 2 + [
    {"prompt": "Why?", "text": "", "kept": False, "alpha": 1.0}
]
STEPS = [
    StepLog(1, 0.5, "train", {"loss": 3.0, "D_mean": 0.0}),
    StepLog(2, 1.0, "train", {"loss": 2.0, "D_mean": 0.25}),
    StepLog(2, 1.0, "eval", {"loss": 2.5}),
]
ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module", autouse=True)
def _own_folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No key, no server and no settings but those of a test; W&B's own files stay in a temporary folder."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("WANDB_")] + ["NETRC"]:
            patch.delenv(name, raising=False)
        for name in ("HOME", "WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR"):
            patch.setenv(name, str(home))
        yield


def tracker(folder: Path, mode: Mode, name: str = "a-run", project: str = "heal-tests") -> Trackers:
    run = TrackedRun(name, folder, CONFIG, TrackingConfig(mode=mode, project=project))
    return start_trackers(run, EventLog(Events(folder / "events.jsonl")))


def track(folder: Path, mode: Mode) -> None:
    """A short run with everything that a run tracks."""
    folder.mkdir(parents=True, exist_ok=True)
    tell(tracker(folder, mode), folder)


def tell(told: Tracker, folder: Path) -> None:
    """Everything that a tracker is told of two rounds."""
    for number in (1, 2):
        for step in STEPS:
            told.step_log(number, 2, step)
        told.event("stage", {"stage": "extract", "seconds": 1.5})
        told.round(number, {"trait": number - 0.9, "healed/p_ans_any": 0.9})
        told.table(f"completions/round_{number:02d}", ROWS)
    Image.new("RGB", (8, 6)).save(folder / "trajectory.png")
    told.figure("report/trajectory", folder / "trajectory.png")
    (folder / "adapter").mkdir()
    (folder / "adapter" / "adapter_config.json").write_text("{}")
    told.artifact("a-run-adapter", "adapter", folder / "adapter")
    told.finish({"state": "done", "verdict": "holds"})


def records(folder: Path) -> list[Record]:
    """The records of the one W&B file below `folder`, once W&B's own process has written the last of them."""
    (path,) = folder.rglob("offline-run-*/*.wandb")
    for _ in range(300):
        everything = written(path)
        if of_kind(everything, "exit"):
            return everything
        time.sleep(0.1)
    raise TimeoutError(f"W&B has not finished {path}")


def written(path: Path) -> list[Record]:
    """The whole records of a W&B file: LevelDB's log format after a header of seven bytes."""
    content = path.read_bytes()
    assert content[:4] == b":W&B"
    whole, at, part = [], 7, b""
    while at + 7 <= len(content):
        left_in_block = 32768 - at % 32768
        if left_in_block < 7:
            at += left_in_block
            continue
        _, length, kind = struct.unpack("<IHB", content[at : at + 7])
        part += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            whole.append(Record.FromString(part))
            part = b""
    return whole


def of_kind(everything: list[Record], kind: str) -> list[Any]:
    return [getattr(record, kind) for record in everything if record.WhichOneof("record_type") == kind]


def history(everything: list[Record]) -> list[dict[str, Any]]:
    """Each logged row, its keys joined by '|' where they are nested."""
    return [
        {item.key or "|".join(item.nested_key): json.loads(item.value_json) for item in row.item}
        for row in of_kind(everything, "history")
    ]


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


def test_the_events_hold_the_whole_run_in_order(offline: Path):
    events = read_jsonl(offline / "events.jsonl")
    round_kinds = ["training"] * 3 + ["stage", "round"]
    assert [event["kind"] for event in events] == ["start", *round_kinds, *round_kinds, "end"]
    assert events[0]["config"] == CONFIG
    assert events[0]["wandb"] == "offline"
    assert events[-1]["verdict"] == "holds"


def test_people_read_rounds_counted_from_one(offline: Path):
    events = read_jsonl(offline / "events.jsonl")
    assert [event["round"] for event in events if event["kind"] == "round"] == [1, 2]
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


def test_wandb_gets_the_config_the_name_and_the_project(everything: list[Record]):
    (run,) = of_kind(everything, "run")
    config = {item.key: json.loads(item.value_json) for item in run.config.update}
    assert {name: config[name] for name in CONFIG} == CONFIG
    assert (run.project, run.display_name, run.run_group) == ("heal-tests", "a-run", "a-run")


def test_wandb_draws_rounds_over_rounds_and_steps_over_rounds_trained(everything: list[Record]):
    axes = {metric.glob_name: metric.step_metric for metric in of_kind(everything, "metric") if metric.glob_name}
    assert axes == {"round/*": "round", "train/*": "rounds_trained", "eval/*": "rounds_trained"}


def test_wandb_gets_every_training_step_on_an_axis_of_rounds(everything: list[Record]):
    steps = [row for row in history(everything) if "rounds_trained" in row]
    assert [row["rounds_trained"] for row in steps] == [0.25, 0.5, 0.5, 1.25, 1.5, 1.5]
    assert [row.get("train/loss") for row in steps] == [3.0, 2.0, None] * 2
    assert [row.get("eval/loss") for row in steps] == [None, None, 2.5] * 2


def test_the_axis_never_runs_backwards(everything: list[Record]):
    axis = [row["rounds_trained"] for row in history(everything) if "rounds_trained" in row]
    assert axis == sorted(axis)


def test_wandb_gets_one_value_a_round(everything: list[Record]):
    rounds = [row for row in history(everything) if "round" in row]
    assert [(row["round"], row["round/trait"], row["round/healed/p_ans_any"]) for row in rounds] == [
        (1, pytest.approx(0.1), 0.9),
        (2, pytest.approx(1.1), 0.9),
    ]


def test_wandb_gets_a_table_a_round_with_every_row(offline: Path, everything: list[Record]):
    keys = {key.split("|")[0] for row in history(everything) for key in row if key.endswith("|_type")}
    assert {"completions/round_01", "completions/round_02"} <= keys
    files = sorted((offline / "wandb").rglob("*.table.json"))
    assert len(files) == 2
    for path in files:
        table = json.loads(path.read_text())
        assert table["columns"] == list(ROWS[0])
        assert table["data"] == [list(row.values()) for row in ROWS]


def test_wandb_gets_the_figure(everything: list[Record]):
    (row,) = [row for row in history(everything) if "report/trajectory|_type" in row]
    assert row["report/trajectory|_type"] == "image-file"
    assert (row["report/trajectory|width"], row["report/trajectory|height"]) == (8, 6)


def test_wandb_gets_the_adapter_as_an_artifact(everything: list[Record]):
    (artifact,) = [each for each in of_kind(everything, "artifact") if each.type == "adapter"]
    assert artifact.name == "a-run-adapter"
    assert [entry.path for entry in artifact.manifest.contents] == ["adapter_config.json"]


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


def test_wandb_gets_the_end(everything: list[Record]):
    summary = {item.key: item.value_json for record in of_kind(everything, "summary") for item in record.update}
    assert (json.loads(summary["state"]), json.loads(summary["verdict"])) == ("done", "holds")
    assert of_kind(everything, "exit")[0].exit_code == 0


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
    told.table("outputs/round_01", [])
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
    assert calls == [*["step_log"] * 3, "event", "round", "table"] * 2 + ["figure", "artifact", "finish"]
    assert heard[0].calls == heard[1].calls
    assert heard[0].calls[0] == ("step_log", 1, 2, STEPS[0], True)
    assert told.state == "one listening, silent on, other listening"


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
            file.write(f"{number} {values['trait']:.1f}\\n")


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
    assert (tmp_path / "rounds.txt").read_text() == "1 0.1\n2 1.1\n"
    assert told.state == "events.jsonl, lines in rounds.txt, wandb disabled"
    started = read_jsonl(tmp_path / "events.jsonl")[0]
    assert (started["lines"], started["wandb"]) == ("in rounds.txt", "disabled")


def test_every_tracker_says_what_it_is():
    assert "wandb" in choices.names(TRACKERS)
    for name in choices.names(TRACKERS):
        with case(name):
            assert choices.summary(TRACKERS, name).startswith(f"{name}: ")
            assert callable(choices.load(TRACKERS, name, "start"))


# Which mode.


@pytest.fixture
def closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A key, and a server that is not there."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)


@pytest.fixture
def refusing(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A server that knows no key; its address."""

    class Refuse(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers.get("content-length", 0)))
            self.send_response(401)
            self.send_header("content-length", "2")
            self.end_headers()
            self.wfile.write(b"{}")

        do_GET = do_POST

        def log_message(self, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Refuse)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.server_port}")
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_mode_that_was_asked_for_is_taken(closed: None, monkeypatch: pytest.MonkeyPatch):
    for mode in ["online", "offline", "disabled"]:
        with case(mode):
            monkeypatch.setenv("WANDB_MODE", "disabled")
            assert resolve_mode(mode) == mode


def test_the_environment_decides_when_the_recipe_leaves_it_open(monkeypatch: pytest.MonkeyPatch):
    for mode in ["offline", "disabled"]:
        with case(mode):
            monkeypatch.setenv("WANDB_MODE", mode)
            assert resolve_mode("auto") == mode


def test_without_a_key_it_is_offline(refusing: str):
    assert resolve_mode("auto") == "offline"


def test_with_a_key_and_a_server_it_is_online(refusing: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    assert resolve_mode("auto") == "online"


def test_a_key_may_be_in_a_netrc_file(refusing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for content, mode in [
        ("machine SERVER login user password " + "0" * 40, "online"),
        ("machine 127.0.0.1 login user password " + "0" * 40, "offline"),
        ("machine elsewhere.example login user password " + "0" * 40, "offline"),
        ("machine", "offline"),
        ("", "offline"),
    ]:
        for where in ["HOME", "NETRC"]:
            with case(content, mode, where), monkeypatch.context() as patch:
                (tmp_path / ".netrc").write_text(content.replace("SERVER", refusing.removeprefix("http://")) + "\n")
                patch.setenv(where, str(tmp_path / ".netrc" if where == "NETRC" else tmp_path))
                assert resolve_mode("auto") == mode


def test_the_server_may_be_the_one_that_wandb_login_wrote_down(
    refusing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("WANDB_BASE_URL")
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    (tmp_path / "settings").write_text(f"[default]\nbase_url = {refusing}\n")
    (tmp_path / "netrc").write_text(f"machine {refusing.removeprefix('http://')} login user password {'0' * 40}\n")
    assert resolve_mode("auto") == "online"


def test_a_key_of_the_cloud_under_its_earlier_name_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    asked: list[str] = []
    monkeypatch.setattr(wandb_tracker, "_reachable", lambda url: not asked.append(url))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    (tmp_path / "netrc").write_text(f"machine api.wandb.ai login user password {'0' * 40}\n")
    assert resolve_mode("auto") == "online"
    assert asked == [wandb.Settings().base_url]


def test_a_server_that_is_no_address_is_said_and_the_key_is_not(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WANDB_BASE_URL", "nonsense")
    monkeypatch.setenv("WANDB_API_KEY", "7" * 40)
    with pytest.raises(UserError, match=r"WANDB_BASE_URL.*tracking\.mode=disabled") as caught:
        resolve_mode("auto")
    assert "77" not in str(caught.value)


# In a process of its own: W&B keeps the first server and key that it saw.

_TRACK = """
import sys, time
from pathlib import Path
from heal.errors import UserError
from tests.test_tracking import track
import wandb
start = time.perf_counter()
try:
    track(Path(sys.argv[1]), sys.argv[2])
except UserError as error:
    print(error)
    raise SystemExit(2)
print("tracked", time.perf_counter() - start < 10)
"""


def in_own_process(folder: Path, mode: Mode, **streams: Any) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-c", _TRACK, str(folder), mode], cwd=ROOT, **streams)


def tracked_offline(folder: Path) -> bool:
    """Whether W&B has everything that `track` tracks, offline."""
    said = read_jsonl(folder / "events.jsonl")[0]["wandb"]
    return said == "offline" and len(history(records(folder))) == 2 * 5 + 1


def test_a_key_without_a_server_is_offline_within_seconds(closed: None, tmp_path: Path):
    with in_own_process(tmp_path, "auto", stdout=subprocess.PIPE, text=True) as process:
        assert process.communicate(timeout=60)[0] == "tracked True\n"
    assert tracked_offline(tmp_path)


def test_a_key_that_the_server_refuses_does_not_stop_a_run(
    refusing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    with in_own_process(tmp_path, "auto", stdout=subprocess.PIPE, text=True) as process:
        assert process.communicate(timeout=60)[0] == "tracked True\n"
    assert tracked_offline(tmp_path)


@pytest.mark.parametrize("key", [None, "0" * 40])
def test_online_that_is_not_possible_says_in_one_line_what_to_do(
    refusing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str | None
):
    if key:
        monkeypatch.setenv("WANDB_API_KEY", key)
    with in_own_process(tmp_path, "online", stdout=subprocess.PIPE, text=True) as process:
        (line,) = process.communicate(timeout=60)[0].splitlines()
    assert process.returncode == 2
    assert line.startswith("tracking.mode=online: ")
    assert "wandb login" in line
    assert "tracking.mode=auto" in line


def test_what_does_not_start_offline_either_is_said_in_one_line(tmp_path: Path):
    with pytest.raises(UserError, match=r"even offline \(.*128 characters.*\); tracking\.mode=disabled"):
        tracker(tmp_path, "offline", project="p" * 129)


def test_on_a_terminal_without_a_key_nothing_is_asked(tmp_path: Path):
    master, terminal = pty.openpty()
    with in_own_process(tmp_path, "auto", stdin=terminal, stdout=terminal, stderr=terminal) as process:
        os.close(terminal)
        try:
            assert process.wait(timeout=60) == 0
            assert os.read(master, 100_000).split() == [b"tracked", b"True"]
        finally:
            process.kill()
            os.close(master)
    assert tracked_offline(tmp_path)
