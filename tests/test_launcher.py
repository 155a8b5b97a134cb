"""What launchers say in the environment is obeyed, or refused in one line."""

import os

import pytest

from heal.errors import UserError
from heal.launcher import Launched, launched
from tests.cases import case


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """The environment, without what this process was launched with."""
    for name in list(os.environ):
        if name.startswith(("ACCELERATE_", "MASTER_", "PMI_", "OMPI_", "MV2_", "MPI_")) or name.endswith(
            ("RANK", "WORLD_SIZE")
        ):
            monkeypatch.delenv(name)
    return monkeypatch


def test_what_says_one_process_or_nothing_is_obeyed_and_no_library_waits_for_another(
    said: pytest.MonkeyPatch,
) -> None:
    for variables in (
        {},
        {"WORLD_SIZE": "", "RANK": "", "LOCAL_RANK": "", "PMI_SIZE": ""},
        {"WORLD_SIZE": "1", "RANK": "0", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"},
        {"LOCAL_RANK": "0"},
        {"OMPI_COMM_WORLD_SIZE": "1", "OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_LOCAL_RANK": "0"},
    ):
        with case(variables), said.context() as patched:
            for name, text in variables.items():
                patched.setenv(name, text)
            launched()
            assert not variables.keys() & os.environ.keys()
    for name, text in (
        ("ACCELERATE_MIXED_PRECISION", "no"),
        ("ACCELERATE_DYNAMO_BACKEND", "NO"),
        ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1"),
        ("ACCELERATE_USE_FSDP", "false"),
        ("ACCELERATE_USE_CPU", "True"),
    ):
        with case(name), said.context() as patched:
            patched.setenv(name, text)
            launched()
            assert os.environ[name] == text
            patched.setenv(name, "")
            launched()
            assert not os.environ.get(name)


def test_what_heal_does_not_do_is_refused_with_its_name_and_value(said: pytest.MonkeyPatch) -> None:
    for name, text, message in (
        ("WORLD_SIZE", "abc", "expected a number"),
        ("WORLD_SIZE", "0", "expected at least 1"),
        ("LOCAL_RANK", "x", "expected a number"),
        ("LOCAL_RANK", "5", "no rank of one process"),
        ("RANK", "-2", "no rank of one process"),
        ("ACCELERATE_MIXED_PRECISION", "fp8", "model.dtype"),
        ("ACCELERATE_MIXED_PRECISION", "bf16", "model.dtype"),
        ("ACCELERATE_MIXED_PRECISION", "int3", "model.dtype"),
        ("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR", "heal.compile=true"),
        ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4", "heal.accumulation"),
        ("ACCELERATE_USE_DEEPSPEED", "true", "without DeepSpeed"),
        ("ACCELERATE_USE_FSDP", "1", "without accelerate's FSDP"),
        ("ACCELERATE_USE_MEGATRON_LM", "True", "without Megatron-LM"),
        ("ACCELERATE_USE_PARALLELISM_CONFIG", "yes", "by itself"),
        ("ACCELERATE_USE_CPU", "maybe", "expected true or false"),
    ):
        with case(name, text), said.context() as patched:
            patched.setenv(name, text)
            with pytest.raises(UserError, match=f"{name}={text}: .*{message}"):
                launched()


def test_torchruns_processes_are_known_and_those_of_mpi_refused_by_the_first_alone(said: pytest.MonkeyPatch) -> None:
    several = {"WORLD_SIZE": "16", "RANK": "11", "LOCAL_WORLD_SIZE": "8", "LOCAL_RANK": "3"}
    for more in ({}, {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "1"}):  # one torchrun on each machine
        with case(more), said.context() as patched:
            for name, text in (several | more).items():
                patched.setenv(name, text)
            assert launched() == Launched(11, 16, 3, 8)
            assert not (several | more).keys() & os.environ.keys()
    for size, rank in (("PMI_SIZE", "PMI_RANK"), ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK")):
        for number, refusal in (("0", UserError), ("1", SystemExit)):
            with case(size, number), said.context() as patched:
                patched.setenv(size, "2")
                patched.setenv(rank, number)
                with pytest.raises(refusal, match="2"):
                    launched()
