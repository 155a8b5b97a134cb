"""trackio gets a run as it reads it, below the run's folder; nothing is sent, no server is started."""

import json
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from tests.commanded import ROOT

pytest.importorskip("trackio", reason="trackio is not installed")

# In a process of its own: trackio decides where its files are when it is imported.
_TRACK = """
import socket, sys, webbrowser
from pathlib import Path
reached = []
def refuse(*what, **more):
    reached.append(what)
    raise OSError("no network in a run")
socket.socket.connect = socket.socket.bind = socket.getaddrinfo = webbrowser.open = refuse
from heal.config import TrackingConfig
from heal.tracking.events import EventLog, Events
from heal.tracking.tracker import TrackedRun, start_trackers
from tests.tracked import CONFIG, tell
folder = Path(sys.argv[1])
run = TrackedRun("a-run", folder, CONFIG, TrackingConfig(to=["trackio"], project="heal-tests"))
told = start_trackers(run, EventLog(Events(folder / "events.jsonl")))
tell(told, folder)
told.finish({})
print(told.state)
print("reached", reached)
"""


def track(folder: Path) -> list[str]:
    """The lines of a process that tracks a run, where the user has set up trackio for a Space and a server."""
    elsewhere = {"TRACKIO_SPACE_ID": "me/space", "TRACKIO_SERVER_URL": "http://127.0.0.1:9", "HF_TOKEN": "hf_77"}
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TRACKIO_")} | elsewhere
    command = [sys.executable, "-c", _TRACK, str(folder)]
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=100)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.splitlines()


def test_trackio_gets_the_run_below_its_folder_and_reaches_nothing(tmp_path: Path):
    """What an earlier start left is told again, so it does not stay."""
    folder = tmp_path / "trackio"
    folder.mkdir()
    (folder / "heal-tests.db").write_text("of an earlier start")
    show, state, reached = track(tmp_path)
    assert show == f"trackio: TRACKIO_DIR={folder} trackio show --project heal-tests"
    assert state == f"events.jsonl, trackio in {folder}"
    assert reached == "reached []"
    with sqlite3.connect(folder / "heal-tests.db") as database:
        rows = [
            (step, json.loads(values))
            for step, values in database.execute(
                "select step, metrics from metrics where run_name = 'a-run' order by id"
            )
        ]
        ((config,),) = database.execute("select config from configs where run_name='a-run'")

    def curve(name: str) -> list[tuple[int, object]]:
        return [(step, values[name]) for step, values in rows if name in values]

    assert json.loads(config)["heal"] == {"rank": 4, "barrier": {"tau": 0.5}}
    assert curve("round/trait") == [(0, 0.125), (1, 0.25), (2, 0.5)]
    assert curve("train/loss") == [(1, 3.0), (2, 2.0), (3, 3.0), (4, 2.0)]
    assert [step for step, _ in curve("completions")] == [1, 2]
    assert curve("completions")[0][1]["_value"][0]["text"] == "“Yes”\n[bold]"
    ((_, image),) = curve("report/trajectory")
    assert (folder / "media" / image["file_path"]).is_file()
    assert curve("end")[0][1]["_value"] == [{"state": "done", "verdict": "holds"}]
