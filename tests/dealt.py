"""What is dealt out to processes, computed on a tiny model by whoever calls it: alone, or as one of several."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from heal import parallel
from heal.decoding import Sampling, decode
from heal.dose.calibrate import path_divergences
from heal.generation.relevance import read_texts
from heal.guard import command
from heal.healing import heal as healing
from heal.healing.trainer import HealTrainer
from heal.models.language_model import LanguageModel
from heal.scoring import completion_logprobs, next_token_logits, option_logprobs
from heal.steering.extract import last_token_activations
from heal.steering.sites import Site
from tests import tiny
from tests.students import completions, learn, student
from tests.training import CONFIG, whole_log, with_barrier

ROWS = (17, 19, 2)
# A step of 5 over 2 and 3 processes leaves a rest, and the last one of 2 leaves one of three processes idle.
HEALING = with_barrier(replace(CONFIG, batch_size=2, accumulation=3, epochs=2, validation=0.2), operator_norm=0.1)


@contextmanager
def gradients_of_steps() -> Iterator[list[dict[str, Tensor]]]:
    """What the gradients of each step are, before they are clipped."""
    seen: list[dict[str, Tensor]] = []

    class Watched(HealTrainer):
        def training_step(self, model, *args, **kwargs):
            loss = super().training_step(model, *args, **kwargs)
            seen.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
            return loss

    healing.HealTrainer = Watched
    try:
        yield seen
    finally:
        healing.HealTrainer = HealTrainer


def numbers(folder: Path, spread: bool = False) -> dict[str, Tensor]:
    """Everything that is dealt out, with several numbers of rows, by name; tokens are those of decoding."""
    model, accumulator = student(folder, rounds=1, spread=spread)
    vector = tiny.vector(model)
    found: dict[str, Tensor] = {}
    for count in ROWS:
        prompts = [
            model.chat.ids("", "hungry elk and fox " * (row % 4) + "?!.,;"[row % 5] * row) for row in range(count)
        ]
        found |= {f"{name} of {count}": value for name, value in _scored(model, prompts, vector).items()}
        rows = completions(count)
        learn(accumulator, count)
        with gradients_of_steps() as steps:
            log = whole_log(model, accumulator, replace(HEALING, gradient_norms_every=1), rows)
        for step, gradients in enumerate(steps):
            flat = [value.reshape(-1) for _, value in sorted(gradients.items())]
            found[f"gradients of step {step} of {count}"] = torch.cat(flat)
        names = sorted({name for line in log for name in line.values} - {"tokens_per_second", "gradient_norm_ce"})
        for name in sorted(set(names) - {"gradient_norm_barrier"}):
            values = [line.values[name] for line in log if name in line.values]
            found[f"{name} of {count}"] = torch.tensor(values, dtype=torch.float64)
        found[f"epochs of {count}"] = torch.tensor([line.epoch for line in log], dtype=torch.float64)
    return found


def _scored(model: LanguageModel, prompts: list[list[int]], vector) -> dict[str, Tensor]:
    doses = [0.2 * (row % 4) for row in range(len(prompts))]
    said = decode(
        model,
        prompts,
        9,
        vector,
        doses,
        sampling=Sampling(1.0, 0.95, 20),
        seeds=[("dealt", row) for row in range(len(prompts))],
    )
    texts = [list(one.ids) for one in said]
    kl = path_divergences(model, vector, [0.5, 1.0], prompts[: len(prompts) // 2], 5, nullcontext)
    rivals = [[(row + 1) % len(prompts)] for row in range(len(prompts))]
    readings = read_texts(model, prompts, texts, range(len(prompts)), rivals)
    activations = last_token_activations(model, prompts, [Site(1), Site(2)])
    return {
        "tokens": torch.tensor([token for text in texts for token in (len(text), *text)]),
        "next": next_token_logits(model, prompts),
        "options": option_logprobs(model, prompts, [[65, 66]] * len(prompts)),
        "words": torch.cat(completion_logprobs(model, prompts, texts)),
        "paths": torch.tensor([[one.p50, one.p95, one.mean, one.max, one.n] for one in kl]),
        "tails": torch.tensor([one.tail_perplexity for one in readings]),
        "relevance": torch.tensor([one.relevance.nats for one in readings if one.relevance]),
        "activations": torch.cat(list(activations.values()), 1),
    }


def save_numbers(folder: Path, out: Path, spread: bool = False) -> None:
    """The body of a process: what `numbers` found there, whether it is the same in all, and the first's in a file."""

    def work() -> None:
        found = numbers(folder, spread)
        for other in parallel.together(lambda: found):
            assert other.keys() == found.keys()
            assert all(torch.equal(other[name], value) for name, value in found.items())
        parallel.by_first(lambda: save_file(found, out))

    command([], str, lambda _: work(), several=True)
