"""The benchmarks: each compares one piece of a round with its plain counterpart, in turn, in one process.

A piece is a function of a `Setting` and the device's limits that gives rows; `ratio` is this over its baseline.
"""

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from heal.accumulator import Accumulator
from heal.decoding import decode
from heal.dose.calibrate import Goal, calibrate, path_divergences
from heal.healing.barrier import position_losses
from heal.healing.divergences import divergence_named
from heal.healing.references import References, batch_states, compute
from heal.healing.rows import Batch, Collator, training_rows
from heal.models.cached import padded
from heal.models.language_model import LanguageModel
from heal.steering.extract import contexts, pair_activations
from heal.steering.settings import settled
from heal.steering.sites import Site
from heal.studies.bench.limits import Cost, Limits, count_flops, decoding_bytes
from heal.studies.bench.setting import Setting
from heal.studies.bench.table import Row
from heal.studies.bench.timing import interleaved, median_seconds, peak_bytes
from heal.studies.bench.training import PlainSFT, Trained, training

Piece = Callable[[Setting, Limits], Iterator[Row]]

REPEATS = 3
LENGTH, LENGTH_GPU = 16, 64  # tokens decoded
ROWS = 24  # side by side


def heal_piece(setting: Setting, limits: Limits) -> Iterator[Row]:
    """A healing step with the reverse-KL rmse barrier against trl's SFTTrainer doing plain SFT on the same rows."""
    config = training(setting)
    few = setting.rows[: config.batch_size]
    ours = Trained(setting.model, setting.accumulator, config)
    theirs = PlainSFT(*setting.student(0), config)
    seconds: dict[str, list[float]] = {"ours": [], "theirs": []}
    for _ in range(2):
        seconds["ours"] += ours.step_seconds(setting.rows)
        seconds["theirs"] += theirs.step_seconds(setting.rows)
    step, plain = (statistics.median(steps) for steps in seconds.values())
    once, twice = (count_flops(partial(ours.train, few, n)) for n in (1, 2))
    one_step = None if once.flops is None or twice.flops is None else twice.flops - once.flops
    tokens = sum(len(row.prompt_ids) + len(row.ids) for row in few)
    baseline = f"trl plain SFT with{'' if theirs.kernels else 'out'} Liger's kernels"
    note = f"{config.batch_size} completions; baseline: {baseline}, same rows and LoRA"
    row = Row("heal_step", step, plain, step / plain, tokens_per_second=tokens / step, note=note)
    yield _shared(row, limits, Cost(one_step, note=once.note))
    device = setting.model.device
    memory, plain_memory = (peak_bytes(partial(arm.train, few, 1), device) for arm in (ours, theirs))
    yield Row(
        "heal_memory",
        step,
        plain,
        memory / plain_memory,
        peak_bytes=memory,
        note=f"ratio of peaks above the model; {baseline} {plain_memory / 2**20:,.0f} MiB",
    )


def barrier_piece(setting: Setting, limits: Limits) -> Iterator[Row]:
    """The chunked barrier against the dense loss: value and gradient in the hidden states of one batch."""
    model, accumulator = setting.model, setting.accumulator
    batch = one_batch(setting)
    target_N = batch["labels"].to(model.device)
    with torch.no_grad(), accumulator.base():
        reference_ND = batch_states(model, batch)
    h_ND = reference_ND + 0.05 * torch.randn_like(reference_ND)

    def chunked() -> None:
        x_ND = h_ND.clone().requires_grad_()
        nll_N, kl_N = position_losses(model, x_ND, target_N, reference_ND, divergence_named("kl_rev"))
        (nll_N.mean() + kl_N.mean()).backward()

    def dense() -> None:
        x_ND = h_ND.clone().requires_grad_()
        logits_NV = model.logits(x_ND)
        with torch.no_grad():
            reference_NV = model.logits(reference_ND)
        (cross_entropy(logits_NV, target_N) + dense_kl(logits_NV, reference_NV).mean()).backward()

    seconds = median_seconds({"chunked": chunked, "dense": dense}, 2 * REPEATS + 1, model.device)
    ratio, speed = seconds["chunked"] / seconds["dense"], len(target_N) / seconds["chunked"]
    note = f"{len(target_N)} positions; baseline: the dense loss"
    row = Row("barrier_time", seconds["chunked"], seconds["dense"], ratio, tokens_per_second=speed, note=note)
    yield _shared(row, limits, count_flops(chunked))
    memory, whole = (peak_bytes(work, model.device) for work in (chunked, dense))
    yield Row(
        "barrier_memory",
        seconds["chunked"],
        seconds["dense"],
        memory / whole,
        peak_bytes=memory,
        note=f"ratio of peaks; dense {whole / 2**20:,.0f} MiB",
    )


def reference_piece(setting: Setting, limits: Limits) -> Iterator[Row]:
    """A batch's reference states read from the cache against computing them again."""
    model, accumulator = setting.model, setting.accumulator
    batch = one_batch(setting)
    counts = torch.bincount(batch["line"]).tolist()
    with tempfile.TemporaryDirectory() as folder:
        width = model.model.config.get_text_config().hidden_size
        lengths = dict(zip(batch["key"].tolist(), counts, strict=True))
        references = References(lengths, width, model.model.dtype, 2**30, Path(folder))
        compute(references, model, accumulator.base, [batch])

        def again() -> None:
            with torch.no_grad(), accumulator.base():
                batch_states(model, batch)

        arms = {"cached": lambda: references.get(batch["key"], batch["line"]), "again": again}
        seconds = median_seconds(arms, REPEATS, model.device)
    yield Row("reference_cached", seconds["cached"], seconds["again"], seconds["cached"] / seconds["again"])


def generate_piece(setting: Setting, limits: Limits) -> Iterator[Row]:
    """Decoding against transformers' generate, steered against unsteered, and many rows against one by one."""
    vector, tokens = setting.vector, LENGTH if setting.model.device.type == "cpu" else LENGTH_GPU
    model = replace(setting.model, end_ids=frozenset())  # every row has equally many tokens in either arm
    prompts, device = setting.prompts(ROWS), model.device
    note = f"{ROWS} rows of {tokens} tokens; baseline: "
    with setting.accumulator.student():
        arms = {
            "steered": lambda: decode(model, prompts, tokens, vector, [0.5] * ROWS),
            "plain": lambda: decode(model, prompts, tokens),
            "transformers": lambda: transformers_generate(model, prompts, tokens),
        }
        seconds = median_seconds(arms, 2 * REPEATS + 1, device)
        read = decoding_bytes(model, [len(prompt) for prompt in prompts], tokens)
        for name, arm, baseline, said in (
            ("generate", "plain", "transformers", "transformers' generate, the same rows and tokens"),
            ("steered_generate", "steered", "plain", "unsteered"),
        ):
            ratio, speed = seconds[arm] / seconds[baseline], ROWS * tokens / seconds[arm]
            row = Row(name, seconds[arm], seconds[baseline], ratio, tokens_per_second=speed, note=note + said)
            row = replace(row, peak_bytes=peak_bytes(arms[arm], device))
            yield _shared(row, limits, replace(count_flops(arms[arm]), moved=read))
        single, few = replace(model, batching=replace(model.batching, rows=1)), LENGTH
        both = {"all": lambda: decode(model, prompts, few), "one": lambda: decode(single, prompts, few)}
        seconds = median_seconds(both, 1, device)
        ratio, speed = seconds["all"] / seconds["one"], ROWS * few / seconds["all"]
        note = f"{ROWS} rows of {few} tokens; baseline: row by row"
        yield Row("batched_generate", seconds["all"], seconds["one"], ratio, tokens_per_second=speed, note=note)


def extract_piece(setting: Setting, limits: Limits) -> Iterator[Row]:
    """Extraction that stops after the last block it reads against one that continues to the last block."""
    model, trait, texts = setting.model, setting.trait, contexts(16)
    with setting.accumulator.student():
        sites = [Site(layer) for layer in model.band(settled(setting.recipe.steer)[1])]
        arms = {
            "stops": lambda: pair_activations(model, trait, texts, sites),
            "goes on": lambda: pair_activations(model, trait, texts, [*sites, Site(len(model.blocks) - 1)]),
        }
        seconds = median_seconds(arms, REPEATS, model.device)
        cost, memory = count_flops(arms["stops"]), peak_bytes(arms["stops"], model.device)
    read = sum(len(model.chat.ids(persona, text)) for persona in (trait.positive, trait.negative) for text in texts)
    row = Row(
        "extract_stop",
        seconds["stops"],
        seconds["goes on"],
        seconds["stops"] / seconds["goes on"],
        tokens_per_second=read / seconds["stops"],
        peak_bytes=memory,
        note=f"{len(texts)} pairs; baseline: no early stop",
    )
    yield _shared(row, limits, cost)


def pass_piece(setting: Setting, limits: Limits) -> Iterator[Row]:
    """One pass of a calibration: every candidate's paths decoded side by side, then scored without the vector."""
    settings = setting.recipe.calibration
    model = replace(setting.model, end_ids=frozenset())
    prompts = setting.prompts(max(8, settings.prompts))
    doses = [0.5 * (1 + index) for index in range(settings.candidates)]
    with setting.accumulator.student():
        arms = {"pass": lambda: path_divergences(model, setting.vector, doses, prompts, settings.tokens)}
        seconds = median_seconds(arms, REPEATS, model.device)["pass"]
        cost, memory = count_flops(arms["pass"]), peak_bytes(arms["pass"], model.device)
        read = decoding_bytes(model, [len(prompt) for prompt in prompts] * len(doses), settings.tokens)
    rows = len(prompts) * len(doses)
    row = Row(
        "calibration_pass",
        seconds,
        tokens_per_second=rows * settings.tokens / seconds,
        peak_bytes=memory,
        note=f"{rows} rows of {settings.tokens} tokens, decoded and scored",
    )
    yield _shared(row, limits, replace(cost, moved=read))


def calibrate_piece(setting: Setting, limits: Limits) -> Iterator[Row]:
    """A pass, then a calibration's passes, cold and from starts as far off as rounds drift; `ratio` counts them."""
    yield from pass_piece(setting, limits)
    settings, model = setting.recipe.calibration, setting.model
    prompts = setting.prompts(max(8, settings.prompts))

    def run(start: float | None):
        begin = time.perf_counter()
        with setting.accumulator.student():
            calibration = calibrate(
                lambda cs: path_divergences(model, setting.vector, cs, prompts, settings.tokens),
                None,
                replace(Goal.of(settings), reference="student"),
                start=start,
            )
        return calibration, time.perf_counter() - begin

    cold, seconds = run(None)
    note = f"{len(prompts)} prompts, {settings.candidates} candidates a pass, ended on {cold.outcome}; ratio: passes"
    yield Row("calibration_cold", seconds, ratio=cold.passes, note=note)
    warm = [run(cold.c_star * drift) for drift in (0.85, 1.2)]
    worst, seconds = max(warm, key=lambda pair: pair[0].passes)
    outcomes = " and ".join(calibration.outcome for calibration, _ in warm)
    note = f"from 0.85 and 1.2 times c_star, the slower one; ended on {outcomes}; ratio: passes"
    yield Row("calibration_warm", seconds, ratio=worst.passes, note=note)


def history_piece(setting: Setting, limits: Limits) -> Iterator[Row]:
    """A healing step and a decode with 8 and 16 folded rounds against none."""
    config = training(setting)
    rows, prompts = setting.rows[: 2 * config.batch_size], setting.prompts(8)
    students = {rounds: setting.student(rounds) for rounds in (0, 8, 16)}
    steps: dict[int, list[float]] = {rounds: [] for rounds in students}
    for _ in range(REPEATS):
        for rounds, (model, accumulator) in students.items():
            steps[rounds] += Trained(model, accumulator, config).step_seconds(rows)
    arms = {str(rounds): decoding(*student, prompts) for rounds, student in students.items()}
    decodes = interleaved(arms, 2 * REPEATS + 1, setting.model.device)
    for rounds in (8, 16):
        step, none = statistics.median(steps[rounds]), statistics.median(steps[0])
        note = f"{rounds} folded rounds; baseline: none"
        yield Row(f"history_step_{rounds}", step, none, step / none, note=note)
        said, none = statistics.median(decodes[str(rounds)]), statistics.median(decodes["0"])
        speed = len(prompts) * LENGTH / said
        yield Row(f"history_decode_{rounds}", said, none, said / none, None, speed, note=note)


def one_batch(setting: Setting) -> Batch:
    """A collated batch of the recipe's size."""
    rows = training_rows(setting.model, setting.rows[: setting.recipe.heal.batch_size])
    return Collator(setting.model)(rows)


def dense_kl(logits_NV: Tensor, reference_NV: Tensor) -> Tensor:
    """`KL(student || reference)` over the whole batch at once, the straightforward way."""
    logp_NV = torch.log_softmax(logits_NV, -1)
    return (logp_NV.exp() * (logp_NV - torch.log_softmax(reference_NV, -1))).sum(-1)


def decoding(model: LanguageModel, accumulator: Accumulator, prompts: list[list[int]]) -> Callable[[], None]:
    """Greedy decoding of the student, as generation and evaluation do it."""

    def work() -> None:
        with accumulator.student():
            decode(model, prompts, LENGTH)

    return work


def transformers_generate(model: LanguageModel, prompts: Sequence[list[int]], tokens: int) -> list[list[int]]:
    """Exactly `tokens` greedy tokens after each prompt by transformers' own `generate`, padded on the left."""
    ids_BT, real_BT = padded(list(prompts), model.pad_id, model.device)
    said_BT = model.model.generate(
        input_ids=ids_BT,
        attention_mask=real_BT,
        max_new_tokens=tokens,
        do_sample=False,
        eos_token_id=[model.model.get_output_embeddings().weight.shape[0]],  # which is none
        pad_token_id=model.pad_id,
        repetition_penalty=1.0,
    )
    said: list[list[int]] = said_BT[:, ids_BT.shape[1] :].tolist()
    return said


def _shared(row: Row, limits: Limits, cost: Cost) -> Row:
    """The row with its share of the nearer limit, or why there is none."""
    assert row.seconds is not None
    share = limits.share(cost, row.seconds)
    note = "; ".join(text for text in (row.note, share.note) if text)
    return replace(row, limit_share=share.fraction, limit=share.limit, note=note)
