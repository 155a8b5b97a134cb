"""A round of healing on a tiny model: the loss, its gradients, what trains, and what is left behind."""

import copy
import gc
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from torch import Tensor
from torch.nn.functional import kl_div
from trl import SFTTrainer

from heal.accumulator import CURRENT, HISTORY, Accumulator
from heal.config import BarrierConfig, HealConfig
from heal.errors import RoundError
from heal.generation.collect import Row
from heal.healing import heal as healing
from heal.healing.heal import heal, reference_states
from heal.healing.rows import IGNORED, Collator, split, training_rows
from heal.healing.trainer import HealTrainer, squared_operator_norm
from heal.models.language_model import LanguageModel
from heal.randomness import derive_seed
from heal.scoring import completion_states
from tests.students import ALPHA, LAYERS, RANK, completions, learn, logits, put, student, weights
from tests.tiny import ARCHITECTURES, load_architecture

Log = list[dict[str, float]]

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


@pytest.fixture(scope="module", autouse=True)
def _quick_collections() -> Iterator[None]:
    """Every trainer collects garbage twice; what was imported before need not be looked through each time."""
    gc.freeze()
    yield
    gc.unfreeze()


def healed(
    language_model: LanguageModel,
    accumulator: Accumulator,
    config: HealConfig,
    rows: list[Row] = ROWS,
    round_index: int = 0,
    seed: int = 0,
) -> Log:
    log: Log = []
    heal(language_model, accumulator, rows, config, round_index, seed, 4096, log.append)
    return log


def with_barrier(config: HealConfig, **changes) -> HealConfig:
    return replace(config, barrier=replace(config.barrier, **changes))


def dense_logprobs(language_model: LanguageModel, row: Row) -> Tensor:
    """Float64 log-probabilities `[N, V]` where each completion token stands, one row at a time."""
    found = language_model.model(input_ids=torch.tensor([[*row.prompt_ids, *row.ids]])).logits[0]
    return torch.log_softmax(found.double(), -1)[len(row.prompt_ids) - 1 : -1]


def dense_terms(language_model: LanguageModel, accumulator: Accumulator, rows: list[Row], barrier: BarrierConfig):
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
    language_model: LanguageModel, accumulator: Accumulator, rows: list[Row], barrier: BarrierConfig
) -> Tensor:
    ce, d = dense_terms(language_model, accumulator, rows, barrier)
    return ce + barrier.strength * torch.relu(d - barrier.tau).mean()


@pytest.fixture
def gradients(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Tensor]]:
    """What the trainer's gradients are just before each optimiser step, before they are clipped."""
    seen: list[dict[str, Tensor]] = []

    class Watched(HealTrainer):
        def training_step(self, model, *args, **kwargs):
            loss = super().training_step(model, *args, **kwargs)
            seen.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
            return loss

    monkeypatch.setattr(healing, "HealTrainer", Watched)
    return seen


def close(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    """All of `found` within `tolerance` of `expected`, relative to the largest entry."""
    assert found.keys() == expected.keys()
    largest = max(float(each.abs().max()) for each in expected.values())
    assert largest > 0
    for name, each in found.items():
        torch.testing.assert_close(each / largest, expected[name] / largest, rtol=0, atol=tolerance)


# The loss.


@pytest.mark.parametrize("reference", ["base", "previous"])
@pytest.mark.parametrize("divergence", ["kl_rev", "kl_fwd"])
def test_the_first_loss_is_that_of_a_dense_recomputation(tiny_folder: Path, divergence: str, reference: str):
    model, accumulator = student(tiny_folder, rounds=1)
    learn(accumulator, 1)
    config = with_barrier(ONE_STEP, divergence=divergence, reference=reference)
    ce, d = dense_terms(model, accumulator, ROWS, config.barrier)
    over = d > config.barrier.tau
    assert 0 < over.sum() < len(ROWS)
    entry = healed(model, accumulator, config)[0]
    wall = config.barrier.strength * torch.relu(d - config.barrier.tau).mean()
    assert entry["train/ce"] == pytest.approx(ce.item(), rel=1e-5)
    assert entry["train/loss"] == pytest.approx((ce + wall).item(), rel=1e-5)
    assert entry["train/D_mean"] == pytest.approx(d.mean().item(), rel=1e-3)
    assert entry["train/D_max"] == pytest.approx(d.max().item(), rel=1e-3)
    assert entry["train/barrier_on"] == pytest.approx(float(over.double().mean()))


def test_the_first_loss_is_the_same_in_any_cut_of_the_step(tiny_folder: Path):
    losses = []
    for batch_size, accumulation in ((16, 1), (4, 4), (5, 4), (1, 16)):
        model, accumulator = student(tiny_folder, rounds=1)
        config = replace(CONFIG, batch_size=batch_size, accumulation=accumulation)
        losses.append(healed(model, accumulator, config)[0]["train/loss"])
    assert losses == pytest.approx([losses[0]] * 4, rel=1e-5)


@pytest.mark.parametrize("operator_norm", [0.0, 0.01])
def test_eight_at_once_train_as_two_times_four_and_one_times_eight(tiny_folder: Path, operator_norm: float):
    adapters = []
    rows = completions(19)  # the last step is not full
    for batch_size, accumulation in ((8, 1), (4, 2), (1, 8)):
        model, accumulator = student(tiny_folder, rounds=1)
        config = replace(CONFIG, batch_size=batch_size, accumulation=accumulation, epochs=2, learning_rate=1e-4)
        healed(model, accumulator, with_barrier(config, operator_norm=operator_norm), rows)
        adapters.append(weights(accumulator, CURRENT))
    for other in adapters[1:]:
        for name, weight in other.items():
            torch.testing.assert_close(weight, adapters[0][name], rtol=0, atol=1e-5)


def test_without_divergence_every_loss_is_that_of_trl_s_own_trainer(tiny_folder: Path, tmp_path: Path):
    rows = ROWS[:10]
    model, accumulator = student(tiny_folder)
    config = replace(CONFIG, batch_size=4, epochs=2, barrier=PLAIN)
    ours = [entry["train/loss"] for entry in healed(model, accumulator, config, rows)]

    plain_model, plain = student(tiny_folder)
    trainer = SFTTrainer(
        model=plain.peft_model,
        args=healing._arguments(config, len(ours), derive_seed(0, 0, "heal") % healing._SEEDS, str(tmp_path), False),
        train_dataset=Dataset.from_list(
            [{k: row[k] for k in ("input_ids", "labels")} for row in training_rows(plain_model, rows)]
        ),
        processing_class=copy.copy(plain_model.chat.tokenizer),
    )
    trainer.train()
    theirs = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(ours) == len(theirs) == 6
    assert ours == pytest.approx(theirs, rel=1e-5)
    close(weights(accumulator, "lora_B"), weights(plain, "lora_B"), 1e-4)


def test_at_the_first_step_of_the_first_round_nothing_diverges(tiny_folder: Path):
    for aggregate in ("rmse", "mean", "p95", "max"):
        model, accumulator = student(tiny_folder)
        entry = healed(model, accumulator, with_barrier(replace(CONFIG, batch_size=5), aggregate=aggregate))[0]
        assert entry["train/D_max"] < 1e-6
        assert entry["train/barrier_on"] == 0.0
        assert entry["train/loss"] == entry["train/ce"]


def test_the_strength_of_a_later_round_follows_the_power(tiny_folder: Path):
    walls = []
    for round_index in (0, 3):
        model, accumulator = student(tiny_folder, rounds=1)
        entry = healed(model, accumulator, with_barrier(ONE_STEP, power=-0.5), round_index=round_index)[0]
        walls.append(entry["train/loss"] - entry["train/ce"])
    assert walls[0] > 0
    assert walls[1] == pytest.approx(walls[0] / 2, rel=1e-4)


@pytest.mark.parametrize("bad", [math.inf, 1e30])
def test_a_loss_that_is_not_finite_stops_the_round(tiny_folder: Path, bad: float):
    model, accumulator = student(tiny_folder)
    with pytest.raises(RoundError, match=r"not finite at step 2 .*learning_rate"):
        healed(model, accumulator, replace(CONFIG, learning_rate=bad, batch_size=4))


# Gradients and what trains.


@pytest.mark.parametrize("divergence", ["kl_rev", "kl_fwd"])
def test_gradients_are_those_of_the_dense_loss(tiny_folder: Path, gradients: list[dict[str, Tensor]], divergence: str):
    config = with_barrier(ONE_STEP, divergence=divergence)
    model, accumulator = student(tiny_folder, rounds=1)
    learn(accumulator, 1)
    parameters = accumulator.trainable()
    loss = dense_loss(model, accumulator, ROWS, config.barrier)
    dense = dict(zip(parameters, torch.autograd.grad(loss, list(parameters.values())), strict=True))
    entry = healed(model, accumulator, config)[0]
    close(gradients[0], dense, 5e-5)
    norm = torch.cat([each.flatten() for each in dense.values()]).norm()
    assert entry["train/grad_norm"] == pytest.approx(float(norm), rel=1e-4)


def test_the_barrier_s_gradient_is_in_it(tiny_folder: Path, gradients: list[dict[str, Tensor]]):
    for strength in (0.0, 0.7):
        model, accumulator = student(tiny_folder, rounds=1)
        learn(accumulator, 1)
        healed(model, accumulator, with_barrier(ONE_STEP, strength=strength))
    plain, held = gradients
    assert max(float((plain[name] - held[name]).abs().max()) for name in plain) > 1e-3


def test_accumulated_gradients_are_those_of_the_whole_step(tiny_folder: Path, gradients: list[dict[str, Tensor]]):
    config = with_barrier(ONE_STEP, operator_norm=0.01)
    for batch_size in (16, 3):
        model, accumulator = student(tiny_folder, rounds=1)
        learn(accumulator, 1)
        healed(model, accumulator, replace(config, batch_size=batch_size, accumulation=-(-16 // batch_size)))
    close(gradients[-1], gradients[0], 1e-5)


def test_the_logged_gradient_norms_are_those_of_the_two_terms(tiny_folder: Path):
    model, accumulator = student(tiny_folder, rounds=1)
    learn(accumulator, 1)
    ce, d = dense_terms(model, accumulator, ROWS, BARRIER)
    wall = BARRIER.strength * torch.relu(d - BARRIER.tau).mean()
    parameters = list(accumulator.trainable().values())
    norms = [
        float(torch.cat([g.flatten() for g in torch.autograd.grad(term, parameters, retain_graph=True)]).norm())
        for term in (ce, wall)
    ]
    log = healed(model, accumulator, replace(ONE_STEP, gradient_norms_every=2, epochs=3))
    found = [entry["train/gradient_norm_ce"] for entry in log if "train/gradient_norm_ce" in entry]
    assert len(found) == 2
    assert found[0] == pytest.approx(norms[0], rel=1e-4)
    assert log[0]["train/gradient_norm_barrier"] == pytest.approx(norms[1], rel=1e-3)


def test_looking_at_gradient_norms_changes_no_training(tiny_folder: Path):
    saved = []
    for every in (0, 1):
        model, accumulator = student(tiny_folder, rounds=1)
        healed(model, accumulator, replace(CONFIG, gradient_norms_every=every))
        saved.append(accumulator.save_current())
    assert saved[0] == saved[1]


def test_only_current_has_gradients(tiny_folder: Path, gradients: list[dict[str, Tensor]]):
    model, accumulator = student(tiny_folder, rounds=2)
    healed(model, accumulator, ONE_STEP)
    assert gradients[0].keys() == accumulator.trainable().keys()
    assert all(f".{CURRENT}." in name for name in gradients[0])


def test_training_leaves_the_history_and_the_base_bit_for_bit(tiny_folder: Path):
    model, accumulator = student(tiny_folder, rounds=2)
    before = {n: p.detach().clone() for n, p in accumulator.peft_model.named_parameters() if f".{CURRENT}." not in n}
    healed(model, accumulator, replace(CONFIG, epochs=2, weight_decay=0.1, learning_rate=1e-2))
    after = dict(accumulator.peft_model.named_parameters())
    assert any(f".{HISTORY}." in name for name in before)
    assert all(torch.equal(after[name], weight) for name, weight in before.items())


def test_after_one_step_every_layer_has_learned(tiny_folder: Path):
    model, accumulator = student(tiny_folder)
    log = healed(model, accumulator, ONE_STEP)
    assert len(log) == 1
    assert all(weight.abs().max() > 0 for weight in weights(accumulator, "lora_B").values())


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture_heals_and_is_left_as_it_was(tmp_path: Path, architecture: str):
    model = load_architecture(architecture, tmp_path)
    base = logits(model)
    accumulator = Accumulator(model, RANK, ALPHA, LAYERS)
    accumulator.start_round(0)
    before = state_of(accumulator)
    log = healed(model, accumulator, replace(CONFIG, epochs=2))
    assert log[0]["train/D_max"] < 1e-6
    assert log[-1]["train/D_mean"] > 1e-6
    assert all(weight.abs().max() > 0 for weight in weights(accumulator, "lora_B").values())
    assert state_of(accumulator) == before
    with accumulator.base():
        assert torch.equal(logits(model), base)


def test_training_lowers_the_cross_entropy(tiny_folder: Path):
    model, accumulator = student(tiny_folder)
    log = healed(model, accumulator, replace(ONE_STEP, epochs=12, learning_rate=2e-2, barrier=PLAIN))
    assert log[-1]["train/ce"] < 0.8 * log[0]["train/ce"]


def test_a_stronger_barrier_lets_the_student_drift_less(tiny_folder: Path):
    drift = []
    for strength in (0.0, 30.0):
        model, accumulator = student(tiny_folder)
        config = with_barrier(replace(ONE_STEP, epochs=12, learning_rate=1e-2), strength=strength)
        drift.append(healed(model, accumulator, config)[-1]["train/D_mean"])
    assert drift[1] < 0.7 * drift[0]


def test_a_bfloat16_base_trains_a_float32_adapter_that_stays_finite(tiny_folder: Path):
    model, accumulator = student(tiny_folder, torch.bfloat16, rounds=1)
    log = healed(model, accumulator, replace(CONFIG, epochs=3, learning_rate=1e-2))
    assert all(math.isfinite(value) for entry in log for value in entry.values())
    for weight in weights(accumulator, "lora_B.current").values():
        assert weight.dtype == torch.float32
        assert weight.isfinite().all()
        assert weight.abs().max() > 0
    assert model.model.dtype == torch.bfloat16
    assert logits(model).isfinite().all()


def test_a_bfloat16_first_step_diverges_by_nothing(tiny_folder: Path):
    model, accumulator = student(tiny_folder, torch.bfloat16)
    assert healed(model, accumulator, replace(CONFIG, batch_size=5))[0]["train/D_max"] < 1e-2


# The reference.


def test_base_and_previous_are_two_references_and_each_is_the_model_it_names(tiny_folder: Path):
    model, accumulator = student(tiny_folder, rounds=2)
    prompts, said = [row.prompt_ids for row in ROWS], [row.ids for row in ROWS]
    previous = completion_states(model, prompts, said, 4096)  # the fresh `current` changes nothing
    learn(accumulator, 2)
    original = completion_states(student(tiny_folder)[0], prompts, said, 4096)
    for name, expected in (("base", original), ("previous", previous)):
        found = reference_states(model, accumulator, ROWS, with_barrier(CONFIG, reference=name), 4096)
        assert found is not None
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(original, previous, strict=True))


def test_held_to_the_previous_student_a_fresh_round_starts_at_zero_divergence(tiny_folder: Path):
    model, accumulator = student(tiny_folder, rounds=2)
    assert healed(model, accumulator, with_barrier(ONE_STEP, reference="previous"))[0]["train/D_max"] < 1e-6
    model, accumulator = student(tiny_folder, rounds=2)
    assert healed(model, accumulator, with_barrier(ONE_STEP, reference="base"))[0]["train/D_mean"] > 1e-3


def test_no_reference_is_computed_without_divergence(tiny_folder: Path):
    model, accumulator = student(tiny_folder)
    assert reference_states(model, accumulator, ROWS, replace(CONFIG, barrier=PLAIN), 4096) is None


def test_the_size_of_the_reference_s_passes_changes_nothing(tiny_folder: Path):
    model, accumulator = student(tiny_folder, rounds=1)
    one, many = (reference_states(model, accumulator, ROWS, CONFIG, tokens) for tokens in (1, 4096))
    assert one is not None
    assert many is not None
    for a, b in zip(one, many, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


# What is left behind, and repeating.


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


def heal_and_fail(model: LanguageModel, accumulator: Accumulator) -> None:
    with pytest.raises(RoundError):
        healed(model, accumulator, replace(CONFIG, learning_rate=1e30, batch_size=4))


def heal_well(model: LanguageModel, accumulator: Accumulator) -> None:
    healed(model, accumulator, replace(CONFIG, validation=0.25))


@pytest.mark.parametrize("work", [heal_well, heal_and_fail])
def test_a_round_leaves_the_model_as_it_found_it(tiny_folder: Path, work: Callable[[LanguageModel, Accumulator], None]):
    model, accumulator = student(tiny_folder, rounds=1)
    for config in (
        model.model.config,
        model.model.generation_config,
    ):  # not what a trainer would set from the tokenizer
        config.eos_token_id, config.pad_token_id, config.bos_token_id = [2, 7], 5, 6
    before = state_of(accumulator)
    work(model, accumulator)
    assert state_of(accumulator) == before
    assert not any(module.training for module in accumulator.peft_model.modules())


def test_a_round_leaves_the_tokenizer_as_it_found_it(tiny_folder: Path):
    model, accumulator = student(tiny_folder)
    tokenizer = model.chat.tokenizer

    def described() -> list[object]:
        kept = (tokenizer.special_tokens_map, tokenizer.padding_side, tokenizer.chat_template, tokenizer.init_kwargs)
        return [*copy.deepcopy(kept), tokenizer.backend_tokenizer.to_str(), model.chat.ids("Be kind.", "Hello!")]

    before = described()
    healed(model, accumulator, CONFIG)
    assert described() == before


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_after_a_round_the_gates_off_are_the_base_bit_for_bit(tiny_folder: Path, dtype: torch.dtype):
    model, accumulator = student(tiny_folder, dtype, rounds=1)
    healed(model, accumulator, replace(CONFIG, learning_rate=1e-2))
    with accumulator.base():
        assert torch.equal(logits(model), logits(student(tiny_folder, dtype)[0]))


def test_the_second_round_is_the_one_that_a_fresh_process_would_train(tiny_folder: Path, tmp_path: Path):
    model, accumulator = student(tiny_folder)
    healed(model, accumulator, CONFIG)
    first = accumulator.save_current()
    accumulator.fold()
    accumulator.start_round(1)
    log = healed(model, accumulator, CONFIG, completions(16, seed=1), round_index=1)

    other_model, other = student(tiny_folder)
    other.load_current(put(tmp_path, first))
    other.fold()
    other.start_round(1)
    other_log = healed(other_model, other, CONFIG, completions(16, seed=1), round_index=1)
    assert other.save_current() == accumulator.save_current()
    assert [entry["train/loss"] for entry in log] == [entry["train/loss"] for entry in other_log]
    assert torch.equal(logits(other_model), logits(model))


def test_the_same_seed_trains_the_same_bytes_whatever_was_drawn_before(tiny_folder: Path):
    saved = []
    for disturbance in (1, 2):
        model, accumulator = student(tiny_folder)
        torch.manual_seed(disturbance)
        healed(model, accumulator, replace(CONFIG, batch_size=4))
        saved.append(accumulator.save_current())
    assert saved[0] == saved[1]


@pytest.mark.parametrize(("round_index", "seed"), [(1, 0), (0, 1)])
def test_another_round_or_seed_sees_the_completions_in_another_order(tiny_folder: Path, round_index: int, seed: int):
    saved = []
    for pair in ((0, 0), (round_index, seed)):
        model, accumulator = student(tiny_folder)
        healed(model, accumulator, replace(CONFIG, batch_size=4), round_index=pair[0], seed=pair[1])
        saved.append(accumulator.save_current())
    assert saved[0] != saved[1]


# Logs.


def test_every_step_is_logged_with_what_the_specification_asks_for(tiny_folder: Path):
    model, accumulator = student(tiny_folder)
    told: list[tuple[int, int]] = []
    log: Log = []
    heal(
        model,
        accumulator,
        ROWS,
        replace(CONFIG, batch_size=4, epochs=2, gradient_norms_every=1, warmup=0.25, learning_rate=1e-3),
        0,
        0,
        4096,
        log.append,
        lambda done, total: told.append((done, total)),
    )
    names = "loss ce D_mean D_max barrier_on gradient_norm_ce gradient_norm_barrier learning_rate tokens_per_second"
    for number, entry in enumerate(log, 1):
        assert {f"train/{name}" for name in names.split()} <= entry.keys()
        assert entry["step"] == number
        assert entry["epoch"] == pytest.approx(number / 4)
    assert told == [(0, 8), *((number, 8) for number in range(1, 9))]
    rates = [entry["train/learning_rate"] for entry in log]
    assert rates[0] == 0.0
    assert max(rates) == rates[2] == pytest.approx(1e-3)
    assert rates[2:] == sorted(rates[2:], reverse=True)


def test_gradients_are_clipped_to_the_limit(tiny_folder: Path):
    """Clipped to nearly nothing, AdamW's epsilon keeps the weights from moving."""
    moved = []
    for clip in (1e9, 1e-12):
        model, accumulator = student(tiny_folder)
        log = healed(model, accumulator, replace(ONE_STEP, clip=clip))
        moved.append(max(float(w.abs().max()) for w in weights(accumulator, "lora_B").values()))
        assert log[0]["train/grad_norm"] > 0.1
    assert moved[1] < 1e-3 * moved[0]


def test_weight_decay_shrinks_what_the_gradient_leaves_alone(tiny_folder: Path):
    """At B = 0 the first step's gradient in A is zero: only the decay moves it."""
    model, accumulator = student(tiny_folder)
    before = weights(accumulator, "lora_A")
    healed(model, accumulator, replace(ONE_STEP, weight_decay=0.5, learning_rate=1e-2))
    for name, weight in weights(accumulator, "lora_A").items():
        torch.testing.assert_close(weight, before[name] * (1 - 0.5 * 1e-2), rtol=1e-5, atol=1e-7)


def test_held_out_completions_are_validated_each_epoch_and_never_trained_on(tiny_folder: Path):
    config = replace(CONFIG, epochs=2, validation=0.25)
    held_out = split(len(ROWS), 0.25, 0, 0, "validation").validation
    model, accumulator = student(tiny_folder, rounds=1)
    log = healed(model, accumulator, config)
    validation = [entry for entry in log if "eval/loss" in entry]
    assert [entry["epoch"] for entry in validation] == [1.0, 2.0]
    ce, d = dense_terms(model, accumulator, [ROWS[index] for index in held_out], config.barrier)
    assert validation[-1]["eval/ce"] == pytest.approx(ce.item(), rel=1e-5)
    assert validation[-1]["eval/D_mean"] == pytest.approx(d.mean().item(), rel=1e-3)

    others = [replace(row, ids=(7, 8, 9, 2)) if index in held_out else row for index, row in enumerate(ROWS)]
    model, again = student(tiny_folder, rounds=1)
    healed(model, again, config, others)
    assert again.save_current() == accumulator.save_current()


# The operator norm.


def full_norm(accumulator: Accumulator) -> Tensor:
    """Mean over layers of the squared spectral norm, by the SVD of the full update."""
    squares = []
    for layer in accumulator.current_layers():
        update = layer.scaling[CURRENT] * layer.lora_B[CURRENT].weight @ layer.lora_A[CURRENT].weight
        squares.append(torch.linalg.matrix_norm(update, ord=2).square())
    return torch.stack(squares).mean()


def test_the_operator_norm_is_that_of_the_full_update(tiny_folder: Path):
    _, accumulator = student(tiny_folder, rounds=1)
    for seed in range(5):
        learn(accumulator, seed)
        torch.testing.assert_close(squared_operator_norm(accumulator), full_norm(accumulator), rtol=1e-5, atol=0)


def test_its_gradient_is_that_through_the_full_svd(tiny_folder: Path):
    _, accumulator = student(tiny_folder)
    learn(accumulator, 0)
    parameters = accumulator.trainable()
    both = [
        dict(zip(parameters, torch.autograd.grad(norm(accumulator), list(parameters.values())), strict=True))
        for norm in (squared_operator_norm, full_norm)
    ]
    close(both[0], both[1], 1e-5)


def test_an_untrained_update_has_no_operator_norm_and_a_finite_gradient(tiny_folder: Path):
    _, accumulator = student(tiny_folder)
    norm = squared_operator_norm(accumulator)
    norm.backward()
    assert norm.item() == 0.0
    assert all(p.grad is not None and p.grad.isfinite().all() for p in accumulator.trainable().values())


def test_the_penalty_lowers_the_operator_norm_and_is_logged(tiny_folder: Path):
    norms = []
    for weight in (0.0, 10.0):
        model, accumulator = student(tiny_folder)
        config = with_barrier(replace(ONE_STEP, epochs=8, learning_rate=1e-2), operator_norm=weight, divergence="none")
        log = healed(model, accumulator, config)
        norms.append(float(full_norm(accumulator)))
        assert all(("train/operator_norm_penalty" in entry) == (weight > 0) for entry in log)
    assert norms[1] < 0.5 * norms[0]


# Rows.


def test_labels_are_the_sampled_ids_and_the_prompt_is_masked(tiny_folder: Path):
    model, _ = student(tiny_folder)
    for number, (row, made) in enumerate(zip(ROWS, training_rows(model, ROWS), strict=True)):
        assert made["input_ids"] == [*row.prompt_ids, *row.ids]
        assert made["labels"] == [IGNORED] * len(row.prompt_ids) + list(row.ids)
        assert made["completion"] == number


def test_the_end_of_turn_of_a_completion_that_ended_is_trained_on(tiny_folder: Path):
    model, _ = student(tiny_folder)
    ended = [made for row, made in zip(ROWS, training_rows(model, ROWS), strict=True) if row.ended]
    assert len(ended) > 3
    assert all(made["labels"][-1] in model.end_ids for made in ended)


@pytest.mark.parametrize(
    ("broken", "complaint"),
    [
        (replace(ROWS[0], ids=(5, 6), ended=True), "completion 0 ended, but its last token is not an end of turn"),
        (replace(ROWS[1], ids=()), "completion 1 is empty"),
        (replace(ROWS[1], ids=(5,) * 1024), "completion 1 has 10.. tokens, over the context of 1024"),
    ],
)
def test_a_completion_that_would_teach_the_wrong_thing_is_an_error(tiny_folder: Path, broken: Row, complaint: str):
    with pytest.raises(ValueError, match=complaint):
        training_rows(student(tiny_folder)[0], [broken])


def test_a_batch_is_padded_on_the_right_and_the_padding_is_ignored(tiny_folder: Path):
    model, _ = student(tiny_folder)
    rows = training_rows(model, ROWS[:5])
    batch = Collator(model.pad_id)(rows)
    for line, row in enumerate(rows):
        length = len(row["input_ids"])
        assert batch["input_ids"][line, :length].tolist() == row["input_ids"]
        assert batch["labels"][line, :length].tolist() == row["labels"]
        assert (batch["input_ids"][line, length:] == model.pad_id).all()
        assert (batch["labels"][line, length:] == IGNORED).all()
    assert batch["completion"].tolist() == list(range(5))


@pytest.mark.parametrize("count", [0, 1, 5, 16, 40])
@pytest.mark.parametrize("share", [0.0, 0.125, 0.5])
def test_a_split_parts_the_completions_and_keeps_their_order(count: int, share: float):
    parts = split(count, share, 3, 1, "validation")
    assert sorted(parts.train + parts.validation) == list(range(count))
    assert len(parts.validation) == round(share * count)
    assert parts.train == sorted(parts.train)
    assert parts.validation == sorted(parts.validation)


def test_a_split_is_a_function_of_its_seed():
    assert split(40, 0.25, 3, 1) == split(40, 0.25, 3, 1)
    assert split(40, 0.25, 3, 1) != split(40, 0.25, 3, 2)
