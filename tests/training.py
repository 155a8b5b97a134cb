"""Rounds of healing on a tiny model, and the dense loss that they are held against."""

import copy
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import kl_div

from heal.accumulator import Accumulator
from heal.config import BarrierConfig, HealConfig
from heal.generation.collect import Completion
from heal.healing.heal import heal
from heal.healing.log import StepLog
from heal.models.language_model import LanguageModel
from tests.students import ALPHA, RANK, completions

BARRIER = BarrierConfig(divergence="kl_rev", aggregate="rmse", strength=0.7, tau=0.2)
PLAIN = BarrierConfig(divergence="none")
CONFIG = HealConfig(
    rank=RANK,
    alpha=ALPHA,
    epochs=1,
    learning_rate=1e-3,
    warmup=0.0,
    batch_size=8,
    accumulation=1,
    validation=0.0,
    gradient_norms_every=0,
    clip=1e9,
    barrier=BARRIER,
)
ONE_STEP = replace(CONFIG, batch_size=16)
ROWS = completions(16)


def healed(
    language_model: LanguageModel,
    accumulator: Accumulator,
    config: HealConfig,
    rows: list[Completion] = ROWS,
    round_index: int = 0,
    seed: int = 0,
) -> list[StepLog]:
    """Trains `current`; the log of its steps, without the floor that comes first."""
    log = whole_log(language_model, accumulator, config, rows, round_index=round_index, seed=seed)
    return [step for step in log if step.step]


def whole_log(
    language_model: LanguageModel,
    accumulator: Accumulator,
    config: HealConfig,
    rows: list[Completion] = ROWS,
    scratch: Path | None = None,
    **options: Any,
) -> list[StepLog]:
    """Trains `current` with `heal`'s own options; everything that is logged."""
    log: list[StepLog] = []
    options = {"round_index": 0, "seed": 0, "reference_bytes": 2**20} | options
    with TemporaryDirectory() as folder:
        heal(
            language_model,
            accumulator,
            rows,
            config,
            scratch=scratch or Path(folder),
            on_log=log.append,
            **options,
        )
    return log


def with_barrier(config: HealConfig, **changes) -> HealConfig:
    return replace(config, barrier=replace(config.barrier, **changes))


def dense_logprobs(language_model: LanguageModel, row: Completion) -> Tensor:
    """Float64 log-probabilities `[N, V]` where each completion token stands, one row at a time."""
    logits_TV = language_model.model(input_ids=torch.tensor([[*row.prompt_ids, *row.ids]])).logits[0]
    return torch.log_softmax(logits_TV.double(), -1)[len(row.prompt_ids) - 1 : -1]


def dense_terms(
    language_model: LanguageModel, accumulator: Accumulator, rows: list[Completion], barrier: BarrierConfig
):
    """Cross-entropy over all completion tokens and each completion's D, with full logits in float64."""
    assert barrier.aggregate == "rmse"
    context = accumulator.base if barrier.reference == "base" else accumulator.previous
    with context(), torch.no_grad():
        references = [dense_logprobs(language_model, row) for row in rows]
    nll, d = [], []
    for row, reference in zip(rows, references, strict=True):
        logp = dense_logprobs(language_model, row)
        nll.append(-logp[range(len(row.ids)), list(row.ids)])
        pair = (reference, logp) if barrier.divergence == "kl_rev" else (logp, reference)
        kl = kl_div(*pair, reduction="none", log_target=True).sum(-1)
        d.append((kl.square().mean() + 1e-12).sqrt() - 1e-6)
    return torch.cat(nll).mean(), torch.stack(d)


def dense_loss(
    language_model: LanguageModel, accumulator: Accumulator, rows: list[Completion], barrier: BarrierConfig
) -> Tensor:
    ce, d = dense_terms(language_model, accumulator, rows, barrier)
    return ce + barrier.strength * torch.relu(d - barrier.tau).mean()


def close(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    """All of `found` within `tolerance` of `expected`, relative to the largest entry."""
    assert found.keys() == expected.keys()
    largest = max(float(tensor.abs().max()) for tensor in expected.values())
    assert largest > 0
    for name, tensor in found.items():
        torch.testing.assert_close(tensor / largest, expected[name] / largest, rtol=0, atol=tolerance)


def state_of(accumulator: Accumulator) -> dict[str, object]:
    """What a trainer is known to change on a model."""
    model = accumulator.peft_model.get_base_model()
    wraps = {"peft": accumulator.peft_model, "lora": accumulator.peft_model.base_model, "model": model}
    return {
        "attributes": {name: sorted(vars(module)) for name, module in wraps.items()},
        "config": copy.deepcopy(model.config.to_dict()),
        "generation": copy.deepcopy(model.generation_config.to_dict()),
        "hooks": {n: len(m._forward_hooks) + len(m._forward_pre_hooks) for n, m in wraps["model"].named_modules()},
        "trainable": sorted(accumulator.trainable()),
        "gradients": [name for name, p in model.named_parameters() if p.grad is not None],
    }
