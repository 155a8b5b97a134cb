"""The loss of a round of healing, its gradients, and what trains."""

import copy
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from torch import Tensor
from trl import SFTTrainer

from heal.accumulator import CURRENT
from heal.errors import RoundError
from heal.generation.collect import Completion
from heal.healing import heal as healing
from heal.healing.barrier import Barrier
from heal.healing.log import StepLog
from heal.healing.references import References, compute
from heal.healing.rows import Collator, StepOrder, steps_of, training_rows
from heal.healing.trainer import HealTrainer
from heal.randomness import derive_seed
from heal.scoring import completion_states
from tests.cases import case
from tests.closeness import assert_near
from tests.students import completions, learn, logits, student, weights
from tests.tiny import CPU
from tests.training import (
    BARRIER,
    CONFIG,
    ONE_STEP,
    PLAIN,
    ROWS,
    close,
    dense_loss,
    dense_terms,
    healed,
    whole_log,
    with_barrier,
)

pytestmark = pytest.mark.usefixtures("quick_collections")


# The loss.


def test_the_first_loss_is_that_of_a_dense_recomputation(tiny_folder: Path):
    for reference in ["base", "previous"]:
        for divergence in ["kl_rev", "kl_fwd"]:
            with case(reference, divergence):
                model, accumulator = student(tiny_folder, rounds=1)
                learn(accumulator, 1)
                config = with_barrier(ONE_STEP, divergence=divergence, reference=reference)
                ce, d = dense_terms(model, accumulator, ROWS, config.barrier)
                over = d > config.barrier.tau
                assert 0 < over.sum() < len(ROWS)
                step = healed(model, accumulator, config)[0]
                wall = config.barrier.strength * torch.relu(d - config.barrier.tau).mean()
                assert step.values["ce"] == pytest.approx(ce.item(), rel=1e-5)
                assert step.values["loss"] == pytest.approx((ce + wall).item(), rel=1e-5)
                assert step.values["D_mean"] == pytest.approx(d.mean().item(), rel=1e-3)
                assert step.values["D_max"] == pytest.approx(d.max().item(), rel=1e-3)
                assert step.values["barrier_on"] == pytest.approx(float(over.double().mean()))


def test_the_first_loss_is_the_same_in_any_cut_of_the_step(tiny_folder: Path):
    losses = []
    for batch_size, accumulation in ((16, 1), (4, 4), (5, 4), (1, 16)):
        model, accumulator = student(tiny_folder, rounds=1)
        config = replace(CONFIG, batch_size=batch_size, accumulation=accumulation)
        losses.append(healed(model, accumulator, config)[0].values["loss"])
    assert losses == pytest.approx([losses[0]] * 4, rel=1e-5)


def test_eight_at_once_train_as_two_times_four_and_one_times_eight(tiny_folder: Path):
    for operator_norm in [0.0, 0.01]:
        with case(operator_norm):
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


def labelled(row: Completion) -> dict[str, list[int]]:
    """A completion as trl takes it, the prompt masked."""
    return {"input_ids": [*row.prompt_ids, *row.ids], "labels": [-100] * len(row.prompt_ids) + list(row.ids)}


def test_without_divergence_every_loss_is_that_of_trl_s_own_trainer(tiny_folder: Path, tmp_path: Path):
    rows = ROWS[:10]
    model, accumulator = student(tiny_folder)
    config = replace(CONFIG, batch_size=4, epochs=2, barrier=PLAIN)
    ours = [step.values["loss"] for step in healed(model, accumulator, config, rows)]

    plain_model, plain = student(tiny_folder)
    order = [index for step in steps_of(training_rows(model, rows), range(10), 4, 0, 0, "steps") for index in step]

    class SameOrder(SFTTrainer):
        def _get_train_sampler(self, *args):
            return StepOrder(10, 4, 0, 0, "epoch")

    trainer = SameOrder(
        model=plain.peft_model,
        args=healing.training_arguments(
            config, len(ours), derive_seed(0, 0, "heal") % healing.SEEDS, str(tmp_path), False, CPU
        ),
        train_dataset=Dataset.from_list([labelled(rows[index]) for index in order]),
        processing_class=copy.copy(plain_model.chat.tokenizer),
    )
    trainer.train()
    theirs = [step["loss"] for step in trainer.state.log_history if "loss" in step]
    assert len(ours) == len(theirs) == 6
    assert ours == pytest.approx(theirs, rel=1e-5)
    close(weights(accumulator, "lora_B"), weights(plain, "lora_B"), 1e-4)


def test_at_the_first_step_of_the_first_round_nothing_diverges(tiny_folder: Path):
    for aggregate in ("rmse", "mean", "p95", "max"):
        model, accumulator = student(tiny_folder)
        step = healed(model, accumulator, with_barrier(replace(CONFIG, batch_size=5), aggregate=aggregate))[0]
        assert step.values["D_max"] < 1e-6
        assert step.values["barrier_on"] == 0.0
        assert step.values["loss"] == step.values["ce"]


def test_the_strength_of_a_later_round_follows_the_power(tiny_folder: Path):
    walls = []
    for round_index in (0, 3):
        model, accumulator = student(tiny_folder, rounds=1)
        step = healed(model, accumulator, with_barrier(ONE_STEP, power=-0.5), round_index=round_index)[0]
        walls.append(step.values["loss"] - step.values["ce"])
    assert walls[0] > 0
    assert walls[1] == pytest.approx(walls[0] / 2, rel=1e-4)


def test_a_strength_that_follows_D_is_that_of_the_dense_loss_at_every_step(
    tiny_folder: Path, gradients: list[dict[str, Tensor]]
):
    paths = []
    for batch_size, start in ((16, 0.7), (16, 3.0), (3, 3.0)):
        with case(batch_size, start):
            model, accumulator = student(tiny_folder, rounds=1)
            learn(accumulator, 1)
            _, d = dense_terms(model, accumulator, ROWS, BARRIER)
            tau = 0.5 * float(d.detach().min())  # every completion is above it, so that the log says the excess
            config = with_barrier(replace(ONE_STEP, epochs=4), strength=None, tau=tau)
            config = replace(config, batch_size=batch_size, accumulation=-(-16 // batch_size))
            parameters = accumulator.trainable()
            loss = dense_loss(model, accumulator, ROWS, replace(config.barrier, strength=start))
            dense = dict(zip(parameters, torch.autograd.grad(loss, list(parameters.values())), strict=True))
            gradients.clear()
            log = [step.values for step in whole_log(model, accumulator, config, start=start) if step.step]
            close(gradients[0], dense, 5e-5)
            barrier = Barrier.of_round(config.barrier, 1, start)
            for values in log:
                assert values["barrier_on"] == 1
                wall = barrier.strength * (values["D_mean"] - tau)
                assert values["loss"] - values["ce"] == pytest.approx(wall, rel=1e-6)
                barrier = barrier.after(values["D_mean"], 1.0)
                assert values["strength"] == barrier.strength
            paths.append([values["strength"] for values in log])
    assert len(set(paths[0])) == 4
    assert paths[2] == pytest.approx(paths[1], rel=1e-3)


def test_a_loss_or_weights_that_are_not_finite_stop_the_round(tiny_folder: Path):
    for bad in [math.inf, 1e30]:
        with case(bad):
            model, accumulator = student(tiny_folder)
            with pytest.raises(RoundError, match=r"not finite at step 2 .*learning_rate"):
                healed(model, accumulator, replace(CONFIG, learning_rate=bad, batch_size=4))

    model, accumulator = student(tiny_folder)
    with pytest.raises(RoundError, match=r"not finite after the last step, 1; .*learning_rate"):
        healed(model, accumulator, replace(ONE_STEP, learning_rate=math.inf))


# Gradients and what trains.


def test_gradients_are_those_of_the_dense_loss(tiny_folder: Path, gradients: list[dict[str, Tensor]]):
    for divergence in ["kl_rev", "kl_fwd"]:
        with case(divergence):
            config = with_barrier(ONE_STEP, divergence=divergence)
            model, accumulator = student(tiny_folder, rounds=1)
            learn(accumulator, 1)
            parameters = accumulator.trainable()
            loss = dense_loss(model, accumulator, ROWS, config.barrier)
            dense = dict(zip(parameters, torch.autograd.grad(loss, list(parameters.values())), strict=True))
            step = healed(model, accumulator, config)[0]
            close(gradients.pop(), dense, 5e-5)
            norm = torch.cat([gradient.flatten() for gradient in dense.values()]).norm()
            assert step.values["grad_norm"] == pytest.approx(float(norm), rel=1e-4)


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
    close(gradients[-1], gradients[0], 5e-5)


def test_the_logged_gradient_norms_are_those_of_the_two_terms_and_looking_at_them_changes_no_training(
    tiny_folder: Path,
):
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
    found = [step.values["gradient_norm_ce"] for step in log if "gradient_norm_ce" in step.values]
    assert len(found) == 2
    assert found[0] == pytest.approx(norms[0], rel=1e-4)
    assert log[0].values["gradient_norm_barrier"] == pytest.approx(norms[1], rel=1e-3)

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


def test_training_lowers_the_cross_entropy_and_a_stronger_barrier_lets_the_student_drift_less(tiny_folder: Path):
    model, accumulator = student(tiny_folder)
    log = healed(model, accumulator, replace(ONE_STEP, epochs=12, learning_rate=2e-2, barrier=PLAIN))
    assert log[-1].values["ce"] < 0.8 * log[0].values["ce"]

    drift = []
    for strength in (0.0, 30.0):
        model, accumulator = student(tiny_folder)
        config = with_barrier(replace(ONE_STEP, epochs=12, learning_rate=1e-2), strength=strength)
        drift.append(healed(model, accumulator, config)[-1].values["D_mean"])
    assert drift[1] < 0.7 * drift[0]


def test_a_bfloat16_base_trains_a_float32_adapter_that_stays_finite_from_no_divergence_on(tiny_folder: Path):
    model, accumulator = student(tiny_folder, torch.bfloat16, rounds=1)
    log = healed(model, accumulator, replace(CONFIG, epochs=3, learning_rate=1e-2))
    assert all(math.isfinite(value) for step in log for value in step.values.values())
    for weight in weights(accumulator, "lora_B.current").values():
        assert weight.dtype == torch.float32
        assert weight.isfinite().all()
        assert weight.abs().max() > 0
    assert model.model.dtype == torch.bfloat16
    assert logits(model).isfinite().all()

    model, accumulator = student(tiny_folder, torch.bfloat16)
    assert healed(model, accumulator, replace(CONFIG, batch_size=5))[0].values["D_max"] < 1e-2


def test_an_adapter_on_a_4_bit_base_trains_in_float32_as_on_any_other(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
):
    model, accumulator = student(tiny_folder)
    healed(model, accumulator, CONFIG)
    expected = weights(accumulator, CURRENT)
    model, accumulator = student(tiny_folder)
    build = SFTTrainer.__init__

    def build_on_4_bit(self, *args, **kwargs) -> None:
        model.model.is_loaded_in_4bit = True
        build(self, *args, **kwargs)
        assert {weight.dtype for weight in accumulator.trainable().values()} == {torch.bfloat16}  # trl's doing
        del model.model.is_loaded_in_4bit

    monkeypatch.setattr(SFTTrainer, "__init__", build_on_4_bit)
    healed(model, accumulator, CONFIG)
    found = weights(accumulator, CURRENT)
    assert all(weight.dtype == torch.float32 and torch.equal(weight, expected[name]) for name, weight in found.items())


# The reference.


def test_base_and_previous_are_two_references_and_each_is_the_model_it_names(tiny_folder: Path, tmp_path: Path):
    model, accumulator = student(tiny_folder, rounds=2)
    prompts, said = [row.prompt_ids for row in ROWS], [row.ids for row in ROWS]
    previous = completion_states(model, prompts, said)  # the fresh `current` changes nothing
    learn(accumulator, 2)
    original = completion_states(student(tiny_folder)[0], prompts, said)
    rows = training_rows(model, ROWS)
    for context, expected in ((accumulator.base, original), (accumulator.previous, previous)):
        keys = [row.key for row in rows]
        references = References(
            {k: len(row.ids) for k, row in zip(keys, ROWS, strict=True)}, 32, torch.float32, 0, tmp_path
        )
        compute(references, model, context, [Collator(model)(rows[:7]), Collator(model)(rows[7:])])
        for key, h_ND in zip(keys, expected, strict=True):
            found_ND = references.get(torch.tensor([key]), torch.zeros(len(h_ND), dtype=torch.long))
            assert_near(found_ND, h_ND)
    assert not any(torch.equal(a, b) for a, b in zip(original, previous, strict=True))


def test_the_floor_of_the_divergence_is_exactly_zero_and_the_first_round_starts_on_it(tiny_folder: Path):
    for rounds in (0, 2):
        model, accumulator = student(tiny_folder, rounds=rounds)
        log = whole_log(model, accumulator, replace(CONFIG, batch_size=3))
        assert log[0] == StepLog(0, 0.0, "train", {"kl_floor": 0.0})
        assert (log[1].values["D_max"] == 0.0) == (rounds == 0)


def test_a_round_that_runs_out_of_memory_says_what_to_change(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch):
    model, accumulator = student(tiny_folder)

    def full(*args: object, **kwargs: object) -> None:
        raise torch.OutOfMemoryError("tried to allocate 2 GiB")

    monkeypatch.setattr(HealTrainer, "compute_loss", full)
    with pytest.raises(RoundError, match=r"out of memory .* of 8 .* heal\.batch_size .*gradient_checkpointing"):
        healed(model, accumulator, CONFIG)


def test_held_to_the_previous_student_a_fresh_round_starts_at_zero_divergence(tiny_folder: Path):
    model, accumulator = student(tiny_folder, rounds=2)
    assert healed(model, accumulator, with_barrier(ONE_STEP, reference="previous"))[0].values["D_max"] < 1e-6
    model, accumulator = student(tiny_folder, rounds=2)
    assert healed(model, accumulator, with_barrier(ONE_STEP, reference="base"))[0].values["D_mean"] > 1e-3


def test_no_reference_is_computed_without_divergence(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(healing, "compute", None)
    model, accumulator = student(tiny_folder)
    assert healed(model, accumulator, replace(CONFIG, barrier=PLAIN))


def test_references_on_disk_train_the_same_bytes_as_references_in_memory(tiny_folder: Path, tmp_path: Path):
    saved = []
    for budget in (0, 2**20):
        model, accumulator = student(tiny_folder, rounds=1)
        whole_log(model, accumulator, CONFIG, scratch=tmp_path, reference_bytes=budget)
        saved.append(accumulator.save_current())
    assert saved[0] == saved[1]
    assert list(tmp_path.iterdir()) == []
