"""What a round of healing leaves behind, repeats and logs, and where it computes."""

import copy
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from heal.accumulator import CURRENT, HISTORY, Accumulator
from heal.errors import RoundError, UserError
from heal.healing import heal as healing
from heal.healing.log import StepLog, log_bytes, read_log
from heal.healing.rows import split
from heal.models.language_model import LanguageModel
from heal.studies.bench.timing import peak_bytes
from tests.cases import case
from tests.students import ALPHA, LAYERS, RANK, completions, logits, put, student, weights
from tests.tiny import ARCHITECTURES, CPU, load_architecture
from tests.training import (
    CONFIG,
    ONE_STEP,
    ROWS,
    close,
    dense_terms,
    healed,
    state_of,
    whole_log,
)

pytestmark = pytest.mark.usefixtures("quick_collections")


# What is left behind, and repeating.


def heal_and_fail(model: LanguageModel, accumulator: Accumulator) -> None:
    with pytest.raises(RoundError):
        healed(model, accumulator, replace(CONFIG, learning_rate=1e30, batch_size=4))


def heal_well(model: LanguageModel, accumulator: Accumulator) -> None:
    healed(model, accumulator, replace(CONFIG, validation=0.25))


def test_a_round_leaves_the_model_as_it_found_it(tiny_folder: Path):
    for work in [heal_well, heal_and_fail]:
        with case(work):
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


def test_every_architecture_heals_and_is_left_as_it_was(tmp_path: Path):
    for architecture in ARCHITECTURES:
        with case(architecture):
            model = load_architecture(architecture, tmp_path / architecture)
            base = logits(model)
            accumulator = Accumulator(model, RANK, ALPHA, LAYERS)
            accumulator.start_round(0)
            before = state_of(accumulator)
            log = healed(model, accumulator, replace(CONFIG, epochs=2))
            assert log[0].values["D_max"] < 1e-6
            assert log[-1].values["D_mean"] > 1e-6
            assert all(weight.abs().max() > 0 for weight in weights(accumulator, "lora_B").values())
            assert state_of(accumulator) == before
            with accumulator.base():
                assert torch.equal(logits(model), base)


def test_a_round_leaves_the_tokenizer_as_it_found_it(tiny_folder: Path):
    model, accumulator = student(tiny_folder)
    tokenizer = model.chat.tokenizer

    def described() -> list[object]:
        kept = (tokenizer.special_tokens_map, tokenizer.padding_side, tokenizer.chat_template, tokenizer.init_kwargs)
        return [*copy.deepcopy(kept), tokenizer.backend_tokenizer.to_str(), model.chat.ids("Be kind.", "Hello!")]

    before = described()
    healed(model, accumulator, CONFIG)
    assert described() == before


def test_after_a_round_the_gates_off_are_the_base_bit_for_bit(tiny_folder: Path):
    for dtype in [torch.float32, torch.bfloat16]:
        with case(dtype):
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
    assert [step.values["loss"] for step in log] == [step.values["loss"] for step in other_log]
    assert torch.equal(logits(other_model), logits(model))


def test_the_same_seed_trains_the_same_bytes_whatever_was_drawn_before(tiny_folder: Path):
    saved = []
    for disturbance in (1, 2):
        model, accumulator = student(tiny_folder)
        torch.manual_seed(disturbance)
        healed(model, accumulator, replace(CONFIG, batch_size=4))
        saved.append(accumulator.save_current())
    assert saved[0] == saved[1]


def test_another_round_or_seed_sees_the_completions_in_another_order(tiny_folder: Path):
    for round_index, seed in [(1, 0), (0, 1)]:
        with case(round_index, seed):
            saved = []
            for pair in ((0, 0), (round_index, seed)):
                model, accumulator = student(tiny_folder)
                healed(model, accumulator, replace(CONFIG, batch_size=4), round_index=pair[0], seed=pair[1])
                saved.append(accumulator.save_current())
            assert saved[0] != saved[1]


# Logs.


def test_every_step_is_logged_with_its_losses_norms_and_rates(tiny_folder: Path):
    model, accumulator = student(tiny_folder)
    told: list[tuple[int, int]] = []
    config = replace(CONFIG, batch_size=4, epochs=2, gradient_norms_every=1, warmup=0.25, learning_rate=1e-3)
    log = whole_log(model, accumulator, config, progress=lambda done, total: told.append((done, total)))
    names = "loss ce D_mean D_max barrier_on gradient_norm_ce gradient_norm_barrier learning_rate tokens_per_second"
    floor, *log = log
    assert floor == StepLog(0, 0.0, "train", {"kl_floor": 0.0})
    for number, step in enumerate(log, 1):
        assert step.phase == "train"
        assert set(names.split()) <= step.values.keys()
        assert step.step == number
        assert step.epoch == pytest.approx(number / 4)
    assert told == [(0, 8), (0, 8), *((number, 8) for number in range(1, 9))]
    rates = [step.values["learning_rate"] for step in log]
    assert rates[0] == 0.0
    assert max(rates) == rates[2] == pytest.approx(1e-3)
    assert rates[2:] == sorted(rates[2:], reverse=True)


def test_a_log_comes_back_from_disk_without_what_depends_on_the_clock(tmp_path: Path):
    path = tmp_path / "training.jsonl"
    steps = [
        StepLog(0, 0.0, "train", {"kl_floor": 0.0}),
        StepLog(1, 0.5, "train", {"loss": 3.0, "tokens_per_second": 9.0, "D_mean": 0.25}),
        StepLog(1, 0.5, "eval", {"loss": 2.5}),
    ]
    path.write_bytes(log_bytes(steps))
    assert path.read_text().splitlines()[1] == '{"step": 1, "epoch": 0.5, "train/loss": 3.0, "train/D_mean": 0.25}'
    assert read_log(path) == [steps[0], replace(steps[1], values={"loss": 3.0, "D_mean": 0.25}), steps[2]]
    for foreign in ("[1]", "{}", '{"step": 1, "epoch": 1.0}', '{"step": 1, "epoch": 1.0, "test/loss": 2}'):
        with case(foreign):
            path.write_text(f"{foreign}\n")
            with pytest.raises(UserError, match=r"training\.jsonl, line 1: not the log of a training step"):
                read_log(path)


def test_gradients_are_clipped_to_the_limit(tiny_folder: Path):
    """Clipped to nearly nothing, AdamW's epsilon keeps the weights from moving."""
    moved = []
    for clip in (1e9, 1e-12):
        model, accumulator = student(tiny_folder)
        log = healed(model, accumulator, replace(ONE_STEP, clip=clip))
        moved.append(max(float(w.abs().max()) for w in weights(accumulator, "lora_B").values()))
        assert log[0].values["grad_norm"] > 0.1
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
    validation = [step for step in log if step.phase == "eval"]
    assert [step.epoch for step in validation] == [1.0, 2.0]
    ce, d = dense_terms(model, accumulator, [ROWS[index] for index in held_out], config.barrier)
    assert validation[-1].values["ce"] == pytest.approx(ce.item(), rel=1e-5)
    assert validation[-1].values["D_mean"] == pytest.approx(d.mean().item(), rel=1e-3)

    others = [replace(row, ids=(7, 8, 9, 2)) if index in held_out else row for index, row in enumerate(ROWS)]
    model, again = student(tiny_folder, rounds=1)
    healed(model, again, config, others)
    assert again.save_current() == accumulator.save_current()


# Where and how it computes.


def test_one_gpu_trains_however_many_there_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    arguments = healing.training_arguments(CONFIG, 1, 0, str(tmp_path), False, CPU)
    assert arguments.n_gpu == 1
    assert arguments.train_batch_size == CONFIG.batch_size


def test_a_model_on_the_cpu_trains_there_and_a_gpu_is_declined_only_where_there_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for gpu in (False, True):
        with case(gpu):
            monkeypatch.setattr(torch.accelerator, "is_available", lambda gpu=gpu: gpu)
            arguments = healing.training_arguments(CONFIG, 1, 0, str(tmp_path), False, CPU)
            assert arguments.use_cpu == gpu
            assert arguments.device == CPU
            cuda = torch.device("cuda", 0)
            assert not healing.training_arguments(CONFIG, 1, 0, str(tmp_path), False, cuda).use_cpu


def test_blocks_computed_twice_train_the_same_adapter_in_less_memory(tmp_path: Path, tiny_folder: Path):
    for architecture in ARCHITECTURES:
        with case(architecture):
            adapters = []
            for checkpointing in (False, True):
                model = load_architecture(architecture, tmp_path / architecture)
                accumulator = Accumulator(model, RANK, ALPHA, LAYERS)
                accumulator.start_round(0)
                before = state_of(accumulator)
                healed(model, accumulator, replace(CONFIG, epochs=2, gradient_checkpointing=checkpointing))
                assert state_of(accumulator) == before
                adapters.append(weights(accumulator, CURRENT))
            close(adapters[1], adapters[0], 5e-5)

    peaks = []
    for checkpointing in (False, True):
        model, accumulator = student(tiny_folder)
        config = replace(ONE_STEP, gradient_checkpointing=checkpointing)
        peaks.append(peak_bytes(lambda m=model, a=accumulator, c=config: healed(m, a, c), "cpu"))
    assert peaks[1] < 0.8 * peaks[0]


def test_a_compiled_decoder_trains_the_same_adapter(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch):
    # Traced and guarded for real; code is not generated, which takes minutes.
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    adapters = []
    for compiled in (False, True):
        model, accumulator = student(tiny_folder, rounds=1)
        healed(model, accumulator, replace(CONFIG, compile=compiled))
        adapters.append(weights(accumulator, CURRENT))
    close(adapters[1], adapters[0], 1e-4)
