"""A finished student dialled from its base: 1 is the student, 0 the base, with no second model."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from heal.errors import UserError
from heal.export.factors import history_factors
from heal.models.language_model import LanguageModel
from heal.run.folder import RunFolder
from heal.run.student import Student
from heal.steering.load import load_intervention
from heal.steering.weights import WeightDifference
from heal.studies.weight_difference.gate import adapter_gate, gate_of
from tests import finished
from tests import tiny as tiny_models
from tests.cases import case
from tests.closeness import assert_near
from tests.tiny import load, prompts, trait


@pytest.fixture(scope="module")
def run(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return finished.write_run(tmp_path_factory.mktemp("runs") / "run", tiny_folder)


@pytest.fixture(scope="module")
def students(run: RunFolder) -> dict[int | None, Student]:
    """After the last round, and after the first."""
    return {last_round: finished.student(run, last_round) for last_round in (None, 0)}


def student_gate(student: Student) -> WeightDifference:
    """The gate of a student that is loaded, from its accumulator."""
    factors = history_factors(student.accumulator)
    return gate_of(factors, student.recipe.model.name, student.trait.name, student.rounds)


@pytest.fixture(scope="module")
def gates(run: RunFolder) -> dict[int | None, WeightDifference]:
    """Those of the same rounds, from the folder."""
    return {last_round: adapter_gate(run, last_round) for last_round in (None, 0)}


@torch.no_grad()
def logits(language_model: LanguageModel) -> list[Tensor]:
    return [language_model.model(input_ids=torch.tensor([ids])).logits[0] for ids in prompts(language_model)]


def close(ours: list[Tensor], theirs: list[Tensor]) -> None:
    for a_TV, b_TV in zip(ours, theirs, strict=True):
        assert_near(a_TV, b_TV)


def test_the_gate_of_a_folder_holds_exactly_the_factors_of_its_student(students, gates):
    for last_round, gate in gates.items():
        with case(last_round):
            factors = history_factors(students[last_round].accumulator)
            assert gate.kind == "adapter_gate"
            assert gate.updates.keys() == factors.layers.keys()
            for name, pair in factors.layers.items():
                both = zip(gate.updates[name].factors, pair, strict=True)
                assert all(torch.equal(ours, theirs) for ours, theirs in both)
    assert gates[None].to_bytes() == student_gate(students[None]).to_bytes()


def test_coefficient_one_on_a_plain_base_is_the_student(students, gates, tiny: LanguageModel, run: RunFolder):
    assert tiny.name == run.recipe().model.name
    for last_round, gate in gates.items():
        with case(last_round):
            expected, plain = logits(students[last_round].model), logits(tiny)
            with gate.applied(tiny, 1.0):
                close(logits(tiny), expected)
            assert not torch.allclose(plain[0], expected[0], atol=0.1)
            assert all(torch.equal(ours, theirs) for ours, theirs in zip(logits(tiny), plain, strict=True))


def test_a_coefficient_is_the_student_s_own_gate(students):
    student = students[None]
    for c in (0.0, 0.4, -1.0):
        with case(c):
            with student.accumulator.on_adapters(), student.accumulator.gates(c, 0.0):
                expected = logits(student.model)
            with student.accumulator.base(), student_gate(student).applied(student.model, c):
                close(logits(student.model), expected)


def test_a_gate_comes_back_from_disk(gates, run: RunFolder, tmp_path: Path):
    path = tmp_path / "gate.safetensors"
    path.write_bytes(gates[None].to_bytes())
    loaded = load_intervention(path)
    assert loaded.to_bytes() == gates[None].to_bytes()
    assert (loaded.model, loaded.trait) == (run.recipe().model.name, trait().name)


def test_a_round_that_is_not_there_and_a_folder_that_is_no_run_are_refused(run: RunFolder, tmp_path: Path):
    with pytest.raises(UserError, match=r"round=8: the finished rounds of .* are 1 to 2"):
        adapter_gate(run, 7)
    with pytest.raises(UserError, match="not a run folder"):
        adapter_gate(RunFolder(tmp_path))


def test_a_gate_fits_a_nested_model(tmp_path: Path):
    folder = tiny_models.save("gemma3_nested", tmp_path / "base")
    gate = adapter_gate(finished.write_run(tmp_path / "run", folder))
    gate.check_fits(load(folder))
    assert all(name.startswith("model.language_model.layers.") for name in gate.updates)
