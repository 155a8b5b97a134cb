"""Several processes do what one does: the same tokens, and the same numbers within rounding."""

import csv
import json
import os
import re
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from heal.cli import main
from heal.healing import loss
from heal.run import manifest
from heal.run.folder import RunFolder
from tests import dealt, running
from tests.cases import case
from tests.closeness import assert_near
from tests.processes import ended, launch, said, wait_for
from tests.small_study import SMALL

# A learning rate at which AdamW does not amplify rounding; steps and prompts that do not divide by 2 nor by 3.
MORE = ("heal.learning_rate=1e-4", "heal.batch_size=2", "heal.accumulation=1", "heal.epochs=3", "heal.validation=0.2")

NUMBER = re.compile(r"[-+]?\d+\.?\d*")


def words(tiny_folder: Path, root: Path, *more: str) -> list[str]:
    return ["train", *running.words(tiny_folder, root, "run.name=there", *MORE, *more)]


def results(root: Path) -> RunFolder:
    return RunFolder(root / "there")


def flat(value: Any, name: str = "") -> dict[str, Any]:
    """Plain values by their path in a JSON document."""
    if not isinstance(value, dict | list):
        return {name: value}
    items = value.items() if isinstance(value, dict) else enumerate(value)
    return {key: found for part, inner in items for key, found in flat(inner, f"{name}/{part}").items()}


def content(path: Path) -> Any:
    """Of a file of JSON, or of a JSON document a line."""
    text = path.read_text()
    return json.loads(text) if path.suffix == ".json" else [json.loads(line) for line in text.splitlines()]


def assert_same_run(
    found: Path, expected: Path, parts: Sequence[str] = ("baseline", "rounds"), lora: float = 1e-3
) -> None:
    """The same texts, tokens, counts and verdicts; numbers, vectors and adapters within rounding."""
    for path in sorted(path for part in parts for path in (expected / part).rglob("*.*")):
        other = found / path.relative_to(expected)
        with case(other):
            if path.suffix == ".safetensors":
                tensors, others = load_file(path), load_file(other)
                assert tensors.keys() == others.keys()
                for name, tensor in tensors.items():
                    assert_near(others[name], tensor, lora if "lora" in name else 1e-5)
            elif path.name != manifest.MANIFEST and path.suffix in (".json", ".jsonl"):
                before, now = flat(content(path)), flat(content(other))
                assert before.keys() == now.keys()
                for name, value in before.items():
                    if "gradient_norm_" in name:  # of each term over a step's first pass, which is smaller
                        assert value >= 0
                    elif isinstance(value, float):
                        assert now[name] == pytest.approx(value, rel=2e-3, abs=2e-4, nan_ok=True), name
                    elif name.endswith(("/reason", "/why")):  # a sentence with numbers
                        assert NUMBER.sub("", now[name]) == NUMBER.sub("", value), name
                    else:
                        assert now[name] == value, name


@pytest.fixture(scope="module")
def one(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The root of a run of three rounds by one process."""
    root = tmp_path_factory.mktemp("one")
    log = root / "log.txt"
    assert running.finish(words(tiny_folder, root, "run.rounds=3")[1:], log) == 0, log.read_text()
    return root


def test_whatever_is_dealt_out_comes_to_the_same(tiny_folder: Path, tmp_path: Path) -> None:
    started = {
        name: launch(count, tmp_path / name, dealt.save_numbers, tiny_folder, tmp_path / f"{name}.st", "spread" in name)
        for name, count in {"2": 2, "3": 3, "2 spread": 2, "3 spread": 3}.items()
    }
    alone = dealt.numbers(tiny_folder)
    for count, processes in started.items():
        assert ended(processes) == [0] * len(processes), said(tmp_path / count)
        found = load_file(tmp_path / f"{count}.st")
        assert found.keys() == alone.keys()
        for name, expected in alone.items():
            with case(count, name):
                if "tokens" in name and "second" not in name:
                    assert torch.equal(found[name], expected)
                else:  # gradients after several steps of AdamW, which amplifies rounding
                    assert_near(found[name], expected, 2e-3 if " of step " in name else 1e-4)


def test_a_run_goes_on_with_any_number_of_processes_and_ends_in_the_same(
    one: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    for rounds, count in ((1, 2), (2, 1), (3, 3)):
        line, logs = words(tiny_folder, tmp_path, f"run.rounds={rounds}"), tmp_path / str(rounds)
        if count == 1:
            assert running.finish(line[1:], tmp_path / "log.txt") == 0, (tmp_path / "log.txt").read_text()
            continue
        assert ended(launch(count, logs, main, line)) == [0] * count, said(logs)
        assert [line for line in said(logs, "out") if line.startswith("processes")] == [
            f"processes  {count}, each with the whole model, {count} on this machine"
        ]
        assert (logs / "1.out").read_text() == ""
        if count == 3:
            assert any("3 processes share optimiser steps of 2 completions" in line for line in said(logs, "out"))
    assert_same_run(results(tmp_path).path, results(one).path)
    begun = [line for line in (tmp_path / "there" / "events.jsonl").read_text().splitlines() if '"versions"' in line]
    assert [json.loads(line)["processes"] for line in begun] == [2, 1, 3]


def test_a_run_with_a_spread_base_goes_on_whole_and_the_other_way_round(
    one: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    for rounds, count in ((1, 2), (2, 1), (3, 2)):
        base, logs = "spread" if count > 1 else "whole", tmp_path / str(rounds)
        line = words(tiny_folder, tmp_path, f"run.rounds={rounds}", f"compute.base={base}")
        if count == 1:
            assert running.finish(line[1:], tmp_path / "log.txt") == 0, (tmp_path / "log.txt").read_text()
            continue
        assert ended(launch(count, logs, main, line)) == [0] * count, said(logs)
        told = said(logs, "out")
        assert [line for line in told if line.startswith("processes")] == [
            "processes  2, each with a part of every block (without measured batch sizes, merged history, recorded "
            "steps), 2 on this machine"
        ]
        assert any("(of the weights" in line for line in told if line.startswith("memory"))
        assert any("is the student (KL" in line for line in told)
    # A history that is merged and one that stays on its factors differ in rounding, which AdamW amplifies where a
    # gradient is near zero.
    assert_same_run(results(tmp_path).path, results(one).path, lora=1e-2)


def test_the_studies_of_two_processes_are_those_of_one(tiny_folder: Path, tmp_path: Path) -> None:
    for count in (1, 2):
        root = tmp_path / str(count)
        common = running.words(tiny_folder, root, "run.name=there", *SMALL, "evaluation.vignettes=none")
        for command, *more in (
            ("interventions", "method=mean_diff", "signs=+"),
            ("survival", "method=mean_diff", "signs=+", "tokens=6", "forks=2", "prompts=3", "alphas=0,1"),
            ("weight-difference", "samples=1", f"out={root / 'difference.safetensors'}"),
        ):
            with case(count, command):
                assert ended(launch(count, root / command, main, [command, *common, *more])) == [0] * count, said(
                    root / command
                )
    one, two = tmp_path / "1", tmp_path / "2"
    assert_same_run(two / "there", one / "there", ["baseline", "interventions"])
    (name,) = (path.relative_to(one) for path in one.rglob("survival.csv"))
    before, now = (list(csv.reader((root / name).open())) for root in (one, two))
    assert before[0] == now[0]
    for row, other in zip(before[1:], now[1:], strict=True):
        assert [float(cell or "nan") for cell in other] == pytest.approx(
            [float(cell or "nan") for cell in row], rel=2e-3, abs=2e-4, nan_ok=True
        )
    expected, found = (load_file(root / "difference.safetensors") for root in (one, two))
    assert found.keys() == expected.keys()
    apart, whole = (
        torch.stack([tensor.norm() for tensor in tensors]).norm()
        for tensors in ([found[name] - tensor for name, tensor in expected.items()], list(expected.values()))
    )
    assert apart < 1e-3 * whole  # AdamW amplifies rounding in the few elements whose gradient is near zero


# The exit status of the process that says it, and the line.
REASONS = {
    "memory": (1, r"out of memory while healing with batches of 2 \(CUDA out of memory.*in a run of its own.*"),
    "disk": (1, r".*probe.json: No space left on device. What was finished is kept; the same command continues."),
    "killed": (1, r"another process of this run ended without a word .* What was finished is kept; .*"),
    "locked": (2, r".*: another process is running in this folder"),
    "memory, spread": (1, r"out of memory while healing with batches of 2 \(CUDA out of memory.*in a run of its own.*"),
}


def _planted(kind: str, line: list[str]) -> None:
    """The body of a process in which something goes wrong."""
    first = os.environ["RANK"] == "0"
    if kind.startswith("memory") and not first:

        def out_of_memory(*_: object) -> None:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

        loss.position_losses = out_of_memory
    if kind == "disk" and first:

        def full(path: Path, content: bytes) -> None:
            raise OSError(28, "No space left on device", str(path))

        manifest.write_atomic = full
    main(line)


def test_a_run_that_one_process_ends_says_why_in_one_line_and_goes_on_whole(
    one: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    def line(name: str) -> list[str]:
        base = "spread" if "spread" in name else "whole"
        return words(tiny_folder, tmp_path / name, "run.rounds=1", f"compute.base={base}")

    def logs(name: str) -> Path:
        return tmp_path / name / "logs"

    with results(tmp_path / "locked").locked():
        begun = {kind: launch(2, logs(kind), _planted, kind, line(kind)) for kind in REASONS}
        for kind, (status, reason) in REASONS.items():
            with case(kind):
                if kind == "killed":
                    wait_for((results(tmp_path / kind).round(0) / "completions.jsonl").is_file)
                    os.kill(begun[kind][1].pid or 0, signal.SIGKILL)
                    began = time.monotonic()
                    assert ended(begun[kind], 10) == [status, -signal.SIGKILL]
                    assert time.monotonic() - began < 10
                else:
                    assert status in ended(begun[kind])
                (told,) = said(logs(kind))
                assert re.fullmatch(f"heal: {reason}", told), told
    assert ended(launch(2, logs("again"), main, line("killed"))) == [0, 0], said(logs("again"))
    assert_same_run(results(tmp_path / "killed").path, results(one).path, ("baseline", "rounds/00"))
