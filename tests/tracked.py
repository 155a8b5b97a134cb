"""A short run that is tracked, and what W&B wrote of it."""

import json
import os
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from wandb.proto.wandb_internal_pb2 import Record

from heal.config import TrackingConfig
from heal.healing.log import StepLog
from heal.tracking.events import EventLog, Events
from heal.tracking.mode import Mode
from heal.tracking.tracker import TrackedRun, Tracker, Trackers, start_trackers

CONFIG = {"recipe": "smoke", "heal": {"rank": 4, "barrier": {"tau": 0.5}}}
ROWS = [{"prompt": "Hi?", "text": "“Yes”\n[bold]", "kept": True, "alpha": 0.5}] * 2 + [
    {"prompt": "Why?", "text": "", "kept": False, "alpha": 1.0}
]
STEPS = [
    StepLog(1, 0.5, "train", {"loss": 3.0, "D_mean": 0.0}),
    StepLog(2, 1.0, "train", {"loss": 2.0, "D_mean": 0.25}),
    StepLog(2, 1.0, "eval", {"loss": 2.5}),
]
# What a round comes to, by its number: some of what `heal.outcome.round_values` gives of one.
BASE = {"trait": 0.125, "coherence": 1.0, "healed/p_ans_any": 0.95}
ROUNDS = {
    1: {"trait": 0.25, "coherence": 0.875, "healed/p_ans_any": 0.9},
    2: {"trait": 0.5, "coherence": 0.625, "healed/p_ans_any": 0.9},
}


@pytest.fixture(scope="module", autouse=True)
def own_folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No key, no server and no settings but those of a test; W&B's own files stay in a temporary folder."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("WANDB_")] + ["NETRC"]:
            patch.delenv(name, raising=False)
        for name in ("HOME", "WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR"):
            patch.setenv(name, str(home))
        yield


def tracker(folder: Path, mode: Mode, name: str = "a-run", project: str | None = "heal-tests") -> Trackers:
    run = TrackedRun(name, folder, CONFIG, TrackingConfig(mode=mode, project=project))
    return start_trackers(run, EventLog(Events(folder / "events.jsonl")))


def track(folder: Path, mode: Mode, project: str | None = "heal-tests") -> None:
    """A short run with everything that a run tracks."""
    folder.mkdir(parents=True, exist_ok=True)
    tell(tracker(folder, mode, project=project), folder)


def tell(told: Tracker, folder: Path) -> None:
    """Everything that a tracker is told of base and two rounds."""
    told.round(0, BASE)
    for number, values in ROUNDS.items():
        for step in STEPS:
            told.step_log(number, 2, step)
        told.event("stage", {"stage": "extract", "seconds": 1.5})
        told.round(number, values)
        told.table("completions", ROWS, number)
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
