"""heal on a device that is not the CPU: a device of the tests' own, which has a GPU's rules (tests/device)."""

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from heal.generation.collect import ROWS, Completion
from heal.records import read_records
from heal.run.folder import RunFolder
from heal.steering.vector import SteeringVector
from heal.steps.heal import ADAPTER
from tests import machine
from tests.cases import case
from tests.closeness import assert_near
from tests.commanded import ROOT
from tests.device.build import Unavailable, library
from tests.device.rounds import run

# Attention is another kernel there, which rounds otherwise (5e-5 at worst); AdamW, whose steps are as long for a small
# gradient as for a large one, makes a little more of that, and the second round begins where the first one ended.
RUN = 5e-3


@pytest.fixture(scope="module", autouse=True)
def device() -> None:
    """The compiled device, or the reason why there is none here."""
    try:
        library()
    except Unavailable as reason:
        pytest.skip(f"no device for tests: {reason}")


def on_the_device(folder: Path, *checks: str) -> str:
    """Runs checks of tests/device/checks.py in a process that has the device; what they printed."""
    threads = {"OMP_NUM_THREADS": str(machine.threads())}
    done = subprocess.run(
        [sys.executable, "-m", "tests.device.checks", str(folder), *checks],
        cwd=ROOT,
        env=os.environ | threads,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


def test_the_device_has_a_memory_of_its_own_and_refuses_what_a_gpu_refuses(tmp_path: Path):
    on_the_device(tmp_path, "rules", "lines", "bases")


def test_a_step_of_decoding_or_training_asks_no_more_of_the_device_than_it_did(tmp_path: Path):
    on_the_device(tmp_path, "decoding", "training", "losses", "graphs")


def test_a_run_on_a_device_comes_to_the_cpu_s_numbers_and_can_be_used(tmp_path: Path):
    printed = on_the_device(tmp_path, "rounds")
    assert "on cuda" in printed
    assert "healed (after round 2)" in printed
    assert printed.count("loaded again and compared") == 2
    assert (tmp_path / "survival" / "survival").is_dir()
    assert "completions in a pass of training (tried " in printed
    assert run("llama", tmp_path, "cpu").model.batching.completions == 0  # on a CPU, passes are as they were asked for
    ours, theirs = RunFolder(tmp_path / "device"), RunFolder(tmp_path / "cpu")
    assert ours.rounds() == theirs.rounds() == [0, 1]
    for index in ours.rounds():
        a, b = ours.round(index), theirs.round(index)
        with case(index):
            found, expected = (SteeringVector.load(at / "vector.safetensors") for at in (a, b))
            assert math.isclose(found.c_star or 0.0, expected.c_star or 1.0, rel_tol=RUN)
            for layer, direction_D in expected.directions.items():
                assert_near(found.directions[layer], direction_D, RUN)
            said = [[row.ids for row in read_records(Completion, at / ROWS)] for at in (a, b)]
            assert said[0] == said[1]
            adapters = [load_file(at / ADAPTER / "adapter_model.safetensors") for at in (a, b)]
            for name, weight in adapters[1].items():
                assert_near(adapters[0][name], weight, RUN)


def test_a_run_that_does_not_fit_the_device_s_memory_goes_on_with_smaller_passes(tmp_path: Path):
    on_the_device(tmp_path, "sizes", "halved", "planned", "passes")
