"""What is promised bit for bit or up to rounding, and that docs/numerics.md names tests that exist."""

import math
import os
import re
from pathlib import Path

import pytest
import torch
from torch import Tensor

from heal.environment import deterministic_kernels
from heal.errors import UserError
from heal.export.factors import ExportError
from heal.export.verify import ROUNDING, check
from heal.models.agreement import Agreement, agreement
from heal.models.cached import CachedRows
from heal.models.language_model import LanguageModel
from heal.models.supported import pads_exactly, shares_exactly
from tests import running, tiny
from tests.cases import case

ROOT = Path(__file__).parents[1]


def test_every_test_that_the_table_names_exists() -> None:
    named = re.findall(r"`(tests/\w+\.py)::(\w+)`", (ROOT / "docs" / "numerics.md").read_text())
    assert len(named) > 10
    for file, name in named:
        assert f"def {name}(" in (ROOT / file).read_text(), (file, name)


def test_agreement_is_the_kl_and_the_likeliest_token_whatever_shift_all_logits_share() -> None:
    source = torch.Generator().manual_seed(0)
    ours, theirs = ([torch.randn(t, 40, generator=source) * 5 for t in (70, 3)] for _ in range(2))
    p, q = (torch.cat(rows).double().softmax(-1) for rows in (ours, theirs))
    kl = (p * (p / q).log()).sum(-1)
    found = agreement([rows + 30 for rows in ours], [rows - 7 for rows in theirs])
    assert (found.p50, found.max) == pytest.approx((float(kl.median()), float(kl.max())), rel=1e-4)
    assert found.p95 == pytest.approx(float(kl.quantile(0.95)), rel=1e-4)
    assert found.top1 == pytest.approx(float((p.argmax(-1) == q.argmax(-1)).double().mean()))
    assert agreement(ours, ours) == Agreement(0.0, 0.0, 0.0, 1.0)
    broken = [rows.clone().index_fill_(0, torch.tensor([0]), math.nan) for rows in theirs]
    assert agreement(ours, broken).p50 == math.inf


def test_what_is_more_than_rounding_is_refused_in_every_dtype() -> None:
    for dtype, limit in ROUNDING.items():
        with case(dtype):
            good = Agreement(0.0, limit.p95 / 2, 1.0, 1.0)
            assert check(good, dtype, True, "the student") == good
            for bad in (Agreement(0.0, 2 * limit.p95, 1.0, 1.0), Agreement(0.0, 0.0, 0.0, limit.top1 - 0.01)):
                with pytest.raises(ExportError, match="does not say what the student says"):
                    check(bad, dtype, True, "the student")
                assert check(bad, dtype, False, "the student") == bad
            with pytest.raises(ExportError, match="must be finite"):
                check(Agreement(math.inf, math.inf, math.inf, 0.0), dtype, False, "the student")


def test_rounding_passes_what_is_tried_when_loading_and_a_wrong_state_does_not(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, states = CachedRows.read, LanguageModel.hidden_states

    def disturbed(size: float, h: Tensor) -> Tensor:
        source = torch.Generator().manual_seed(h.shape[0])
        return h + size * h.float().std() * torch.randn(h.shape, generator=source).to(h.dtype)

    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        model = tiny.load(tiny_folder, dtype)
        for rounded in (True, False):
            size = torch.finfo(dtype).eps if rounded else 0.5
            with case(dtype, rounded), monkeypatch.context() as patched:
                patched.setattr(CachedRows, "read", lambda *args, size=size: disturbed(size, read(*args)))
                patched.setattr(LanguageModel, "hidden_states", lambda *args, size=size: disturbed(size, states(*args)))
                assert (shares_exactly(model), pads_exactly(model)) == (rounded, rounded)


def test_deterministic_kernels_are_said_and_set_before_cuda_starts(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    from heal.console import Console
    from heal.recipe import load_recipe
    from heal.run.open import open_model

    name = "CUBLAS_WORKSPACE_CONFIG"
    monkeypatch.delenv(name, raising=False)
    line = running.words(tiny_folder, tmp_path, "compute.deterministic=true")
    try:
        model = open_model(load_recipe(line), Console())[0]
        assert torch.are_deterministic_algorithms_enabled()
        assert os.environ[name] == ":4096:8"
        ids_BT = torch.arange(3, 40)[None]
        one, other = (model.model(input_ids=ids_BT).logits for _ in range(2))
        assert torch.equal(one, other)
    finally:
        torch.use_deterministic_algorithms(False)
    assert "deterministic kernels)" in capsys.readouterr().out
    monkeypatch.setenv(name, ":0:0")
    with pytest.raises(UserError, match=r"CUBLAS_WORKSPACE_CONFIG=:0:0 lets cuBLAS differ"):
        deterministic_kernels()
    monkeypatch.delenv(name)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    with pytest.raises(UserError, match="CUDA has started already"):
        deterministic_kernels()
    assert not torch.are_deterministic_algorithms_enabled()
