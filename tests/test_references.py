"""The reference's hidden states: kept whole, found by what was said, refused when they do not fit."""

from pathlib import Path

import pytest
import torch

from heal.healing.references import FILE, References
from tests.cases import case

LENGTHS = {11: 3, 22: 1, 33: 4}


def filled(folder: Path, budget: int, dtype: torch.dtype = torch.float32) -> tuple[References, dict[int, torch.Tensor]]:
    references = References(LENGTHS, 5, dtype, budget, folder)
    states = {key: torch.randn(length, 5).to(dtype) for key, length in LENGTHS.items()}
    for keys in ((33, 11), (22,)):
        line_N = torch.cat([torch.full((LENGTHS[key],), line) for line, key in enumerate(keys)])
        references.put(torch.tensor(keys), torch.cat([states[key] for key in keys]), line_N)
    return references, states


def lines(*lengths: int) -> torch.Tensor:
    return torch.cat([torch.full((length,), line) for line, length in enumerate(lengths)])


def test_what_is_kept_comes_back_bit_for_bit_in_any_order(tmp_path: Path):
    for dtype in [torch.float32, torch.bfloat16]:
        for budget in [0, 2**20]:
            with case(dtype, budget):
                references, states = filled(tmp_path, budget, dtype)
                found = references.get(torch.tensor([22, 33]), lines(1, 4))
                assert torch.equal(found, torch.cat([states[22], states[33]]))
                assert found.dtype == dtype


def test_beyond_the_budget_they_lie_in_a_file(tmp_path: Path):
    size = sum(LENGTHS.values()) * 5 * 4
    assert not filled(tmp_path, size)[0].on_disk
    assert not (tmp_path / FILE).exists()
    assert filled(tmp_path, size - 1)[0].on_disk
    assert (tmp_path / FILE).stat().st_size == size


def test_a_completion_that_no_reference_was_computed_for_is_an_error(tmp_path: Path):
    references = References(LENGTHS, 5, torch.float32, 2**20, tmp_path)
    references.put(torch.tensor([11]), torch.randn(3, 5), lines(3))
    for unknown in (22, 99):
        with pytest.raises(KeyError, match=f"no reference was computed for completion {unknown}"):
            references.get(torch.tensor([11, unknown]), lines(3, 1))


def test_a_completion_of_another_length_is_an_error(tmp_path: Path):
    references, _ = filled(tmp_path, 2**20)
    with pytest.raises(ValueError, match="completion 33 has 3 tokens, its reference 4"):
        references.get(torch.tensor([33]), lines(3))
