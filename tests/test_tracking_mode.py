"""Which mode W&B runs in: it never asks, never waits and never stops a run."""

import http.server
import os
import pty
import shlex
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import wandb

from heal.errors import UserError
from heal.records import read_jsonl
from heal.tracking import mode as tracking_mode
from heal.tracking.mode import Mode, resolve_mode
from tests.cases import case
from tests.commanded import ROOT
from tests.tracked import history, of_kind, own_folders, records, written  # noqa: F401


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
    for word, mode in [("offline", "offline"), ("dryrun", "offline"), ("disabled", "disabled")]:
        with case(word):
            monkeypatch.setenv("WANDB_MODE", word)
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
    monkeypatch.setattr(tracking_mode, "_reachable", lambda url: not asked.append(url))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    (tmp_path / "netrc").write_text(f"machine api.wandb.ai login user password {'0' * 40}\n")
    assert resolve_mode("auto") == "online"
    assert asked == [wandb.Settings().base_url]


def test_what_wandb_does_not_take_is_said_and_no_value_is(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WANDB_API_KEY", "7" * 40)
    for name, value in [("WANDB_BASE_URL", "nonsense77"), ("WANDB_MODE", "nonsense77"), ("WANDB_RUN_ID", "77" * 40)]:
        with case(name), monkeypatch.context() as patch:
            patch.setenv(name, value)
            with pytest.raises(UserError, match=rf"take {name} as .* tracking\.mode=disabled") as caught:
                resolve_mode("auto")
            assert "77" not in str(caught.value)


# In a process of its own: W&B keeps the first server and key that it saw.

_TRACK = """
import sys, time
from pathlib import Path
from heal.errors import UserError
from tests.tracked import track
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
    return said == "offline" and len(history(records(folder))) == 1 + 2 * 5 + 1


def test_a_key_without_a_server_is_offline_within_seconds(closed: None, tmp_path: Path):
    with in_own_process(tmp_path, "auto", stdout=subprocess.PIPE, text=True) as process:
        send, tracked = process.communicate(timeout=60)[0].splitlines()
    assert "wandb sync" in send
    assert tracked == "tracked True"
    assert tracked_offline(tmp_path)


def test_a_key_that_the_server_refuses_does_not_stop_a_run(
    refusing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    with in_own_process(tmp_path, "auto", stdout=subprocess.PIPE, text=True) as process:
        warning, send, tracked = process.communicate(timeout=60)[0].splitlines()
    assert warning.startswith("warning: W&B is offline: the server refused the key")
    assert "wandb sync" in send
    assert tracked == "tracked True"
    assert tracked_offline(tmp_path)


def test_online_that_is_not_possible_says_in_one_line_what_to_do(
    refusing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for key in ("", "0" * 40):
        with case(key):
            if key:
                monkeypatch.setenv("WANDB_API_KEY", key)
            with in_own_process(tmp_path, "online", stdout=subprocess.PIPE, text=True) as process:
                (line,) = process.communicate(timeout=60)[0].splitlines()
            assert process.returncode == 2
            assert line.startswith("tracking.mode=online: ")
            assert "wandb login" in line
            assert "tracking.mode=auto" in line


def said(folder: Path, mode: str = "auto", script: str = _TRACK) -> str:
    """What a process that tracks a run says; it must end well, without a traceback, and have all events."""
    with subprocess.Popen(
        [sys.executable, "-c", script, str(folder), mode],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        output, errors = process.communicate(timeout=60)
    assert (process.returncode, "Traceback" in errors) == (0, False), errors
    assert read_jsonl(folder / "events.jsonl")[-1]["verdict"] == "holds"
    return output


_STRIKE = """
import sys
from pathlib import Path
import psutil
from heal.tracking.trackers import wandb
from tests.tracked import STEPS, tell, tracker
told = tracker(Path(sys.argv[1]), "offline")
for _ in range(1000):  # more than W&B's process keeps before it writes
    told.step_log(1, 2, STEPS[0])
told.trackers["wandb"]._run.summary.keys()  # answered once all of that arrived
for child in psutil.Process().children(recursive=True):
    child.suspend() if sys.argv[2] == "freeze" else child.kill()
if sys.argv[2] == "freeze":
    wandb._CALL_SECONDS = 2.0
tell(told, Path(sys.argv[1]))
told.finish({"verdict": "holds"})
print(told.state)
"""


def test_a_wandb_that_dies_or_freezes_is_one_warning_and_what_it_wrote_can_be_sent_later(tmp_path: Path):
    for fate in ("die", "freeze"):
        with case(fate):
            warning, state = said(tmp_path / fate, fate, _STRIKE).splitlines()
            (run,) = (tmp_path / fate).glob("wandb/offline-run-*")
            assert warning.startswith("warning: W&B is off (")
            assert ("did not answer for 2 s" in warning) == (fate != "die")
            assert warning.endswith(f"until now: wandb sync {shlex.quote(str(run))}")
            assert len(history(written(*run.glob("*.wandb")))) > 100
            assert state == "events.jsonl, wandb off"


def test_a_setting_that_wandb_does_not_take_is_one_warning_without_the_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for number, (name, value, mode, named) in enumerate(
        [
            ("WANDB_API_KEY", " 77", "auto", "WANDB_API_KEY"),
            ("WANDB_RESUME", "nonsense77", "offline", "resume"),
        ]
    ):
        with case(name, mode), monkeypatch.context() as patch:
            patch.setenv(name, value)
            warning, tracked = said(tmp_path / str(number), mode).splitlines()
            assert warning.startswith("warning: W&B is off (")
            assert named in warning
            assert "77" not in warning
            assert tracked == "tracked True"


def test_a_run_without_a_home_is_tracked_offline_below_its_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Also when there is one that cannot be written; what is staged for an upload lies below the run too."""
    for name in ("WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("WANDB_DIR", "/proc/nowhere")
    for number, home in enumerate(["/proc/nowhere", "~"]):
        with case(home):
            monkeypatch.setenv("HOME", home)  # "~": what Python makes of a user that the system does not know
            folder = tmp_path / str(number)
            warning, send, tracked = said(folder).splitlines()
            assert warning.startswith("warning: WANDB_DIR=/proc/nowhere cannot be written; ")
            (run,) = folder.glob("wandb/offline-run-*")
            assert (send, tracked) == (f"W&B was offline; send it later by: wandb sync {run}", "tracked True")
            assert tracked_offline(folder)
            assert list((folder / "wandb" / "data").rglob("staging/*"))


def test_what_the_user_named_in_the_environment_is_obeyed_and_no_key_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A folder that cannot be written is one warning, and W&B's files lie below the run's."""
    key = "7f" * 20
    for name, value in {
        "WANDB_API_KEY": key,
        "WANDB_MODE": "dryrun",
        "WANDB_NAME": "mine",
        "WANDB_RUN_GROUP": "ours",
        "WANDB_PROJECT": "theirs",
        "WANDB_DIR": str(tmp_path / "own"),
        "WANDB_CACHE_DIR": "/proc/nowhere",
        "WANDB_RESUME": "allow",
        "WANDB_RUN_ID": "abc",
    }.items():
        monkeypatch.setenv(name, value)
    script = _TRACK.replace("sys.argv[2])", "sys.argv[2], project=None)")
    warning, send, _ = said(tmp_path / "run", script=script).splitlines()
    assert warning.startswith("warning: WANDB_CACHE_DIR=/proc/nowhere cannot be written; ")
    (folder,) = (tmp_path / "own").glob("wandb/offline-run-*-abc")
    assert send == f"W&B was offline; send it later by: wandb sync {folder}"
    (run,) = of_kind(records(tmp_path / "own"), "run")
    assert (run.display_name, run.run_group, run.project) == ("mine", "ours", "theirs")
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert not [path for path in files if key.encode() in path.read_bytes()]


def test_what_the_user_told_wandb_in_this_folder_is_obeyed(
    refusing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.chdir(tmp_path)
    assert resolve_mode("auto") == "online"
    for word in ["offline", "disabled", "online"]:
        with case(word):
            command = [sys.executable, "-m", "wandb", word]
            subprocess.run(command, check=True, env=os.environ | {"PYTHONPATH": ""}, capture_output=True)
            assert resolve_mode("auto") == word


def test_on_a_terminal_without_a_key_nothing_is_asked(tmp_path: Path):
    master, terminal = pty.openpty()
    with in_own_process(tmp_path, "auto", stdin=terminal, stdout=terminal, stderr=terminal) as process:
        os.close(terminal)
        try:
            assert process.wait(timeout=60) == 0
            send, tracked = os.read(master, 100_000).splitlines()
            assert (b"wandb sync" in send, tracked) == (True, b"tracked True")
        finally:
            process.kill()
            os.close(master)
    assert tracked_offline(tmp_path)
