"""A round implemented plainly with transformers and peft, as the baseline of a benchmark.

One prompt, one completion and one coefficient at a time: no batches, no padding, the whole vocabulary at
every position, the reference computed again at every step. It is a sensible, straightforward implementation without
deliberate waste: `generate` has its key-value cache, scoring keeps neither gradients nor a cache. It computes
what heal computes, up to rounding, the random numbers of sampling and the learning-rate schedule.

Shape suffixes: T positions, N completion positions, D hidden size, V vocabulary, Q questions, K letters.
"""

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from heal.accumulator import Accumulator
from heal.divergence import kl_divergence
from heal.evaluation.asking.letters import ALPHABET, letter_ids
from heal.evaluation.readouts.questions import OPTIONS
from heal.generation.filters import tail_length
from heal.healing.aggregates import AGGREGATES
from heal.healing.barrier import aggregate
from heal.models.language_model import LanguageModel
from heal.steering.sites import Site
from heal.steering.vector import SteeringVector
from heal.trait import Trait

Ids = Sequence[int]

_CLIP = 1.0
_NARROW = 0.01


@torch.no_grad()
def extract(language_model: LanguageModel, trait: Trait, texts: Sequence[str], layers: Sequence[int]) -> SteeringVector:
    """The mean-difference vector at the assistant tag, each prompt alone through the whole model, head included.

    Args:
        language_model: the model as it stands.
        trait: whose personas are contrasted.
        texts: contexts, each rendered under both personas.
        layers: blocks whose outputs are read.

    Raises:
        ValueError: the last block is among `layers`; transformers returns its output only after the final norm.
    """
    if max(layers) >= len(language_model.blocks) - 1:
        raise ValueError(f"extract: block {max(layers)} is the last one; its own output is not among the hidden states")
    sums: dict[int, Tensor] = {}
    for text in texts:
        for sign, persona in ((1, trait.positive), (-1, trait.negative)):
            ids_1T = _tensor(language_model, language_model.chat.ids(persona, text))
            states = language_model.model(input_ids=ids_1T, output_hidden_states=True, use_cache=False).hidden_states
            for layer in layers:
                h_D = sign * states[layer + 1][0, -1].double().cpu()
                sums[layer] = sums[layer] + h_D if layer in sums else h_D
    states = {Site(layer): {"v": (total / len(texts)).float()} for layer, total in sums.items()}
    return SteeringVector(states, "mean_diff", language_model.name, trait.name)


def calibrate(
    language_model: LanguageModel,
    vector: SteeringVector,
    prompts: Sequence[Ids],
    tokens: int,
    *,
    target: float,
    tolerance: float,
    start: float,
    max_evaluations: int,
) -> tuple[float, float, int]:
    """The coefficient at which `path_statistic` reaches the target, one coefficient at a time.

    Doubles or halves from `start` until the target is bracketed, then follows the chord in (log c, log
    statistic), or halves the bracket where that chord is not finite or one end has moved twice in succession.
    Stops on the tolerance, on a bracket narrower than 1 % or after `max_evaluations`.

    Args:
        language_model, vector, prompts, tokens: see `path_statistic`.
        target: nats, reached within `tolerance` nats.
        start: first coefficient, positive.
        max_evaluations: evaluations before giving up.

    Returns:
        The best coefficient tried, its statistic in nats, and the number of evaluations.
    """
    tried: list[tuple[float, float]] = []
    low: tuple[float, float] | None = None  # (log c, log statistic - log target) below the target
    high: tuple[float, float] | None = None  # and above it
    c, above = start, None
    while True:
        value = path_statistic(language_model, vector, c, prompts, tokens)
        tried.append((c, value))
        if abs(value - target) <= tolerance or len(tried) == max_evaluations:
            break
        gap = _log(value) - math.log(target)
        same_end, above = above == (gap > 0), gap > 0
        low, high = (low, (math.log(c), gap)) if above else ((math.log(c), gap), high)
        if low is None:
            c /= 2
        elif high is None:
            c *= 2
        elif high[0] - low[0] < math.log1p(_NARROW):
            break
        else:
            c = math.exp((low[0] + high[0]) / 2 if same_end else _chord(low, high))
    c, value = min(tried, key=lambda pair: abs(_log(pair[1]) - math.log(target)))
    return c, value, len(tried)


@torch.no_grad()
def path_statistic(
    language_model: LanguageModel, vector: SteeringVector, coefficient: float, prompts: Sequence[Ids], tokens: int
) -> float:
    """The 95th percentile of `KL(on || off)` over all tokens of the greedy steered paths, nats.

    "Off" is the model as it stands, without the vector; `tokens` are decoded for each of `prompts` (ids).
    """
    kl = []
    for prompt in prompts:
        with vector.applied(language_model, coefficient):
            path = _continue(language_model, prompt, tokens, do_sample=False)
            on_NV = _completion_logits(language_model, prompt, path)
        off_NV = _completion_logits(language_model, prompt, path)
        kl.append(kl_divergence(on_NV, off_NV))
    return float(torch.quantile(torch.cat(kl).double(), 0.95))


def generate(
    language_model: LanguageModel,
    vector: SteeringVector,
    prompts: Sequence[Ids],
    coefficients: Sequence[float],
    tokens: int,
    *,
    temperature: float,
    top_p: float,
    top_k: int,
    seed: int,
) -> list[tuple[int, ...]]:
    """Sampled ids of each completion, the end-of-turn token included where it ended.

    Each prompt has its coefficient; completion i seeds torch's global generator with seed + i; top_k 0 keeps all.
    """
    drawn = {"do_sample": True, "temperature": temperature, "top_p": top_p, "top_k": top_k}
    said = []
    for index, (prompt, coefficient) in enumerate(zip(prompts, coefficients, strict=True)):
        torch.manual_seed(seed + index)
        with vector.applied(language_model, coefficient):
            said.append(_continue(language_model, prompt, tokens, **drawn))
    return said


@torch.no_grad()
def tail_perplexities(language_model: LanguageModel, prompts: Sequence[Ids], completions: Sequence[Ids]) -> list[float]:
    """Perplexity of the last quarter of each completion under the model as it stands; NaN where empty."""
    perplexities = []
    for prompt, completion in zip(prompts, completions, strict=True):
        logprob_N = _logprobs(language_model, prompt, completion)[-tail_length(len(completion)) :]
        perplexities.append(math.exp(min(-float(logprob_N.mean()), 700.0)))
    return perplexities


def heal(
    language_model: LanguageModel,
    accumulator: Accumulator,
    rows: Sequence[tuple[Ids, Ids]],
    *,
    epochs: int,
    learning_rate: float,
    betas: tuple[float, float],
    accumulation: int,
    strength: float,
    tau: float,
) -> list[float]:
    """Trains `current` with AdamW at a constant rate, one completion a forward pass, in the order given.

    Args:
        language_model: the student.
        accumulator: with a fresh `current`.
        rows: (prompt ids, completion ids).
        epochs: passes over the rows.
        learning_rate: of AdamW, without weight decay.
        betas: of AdamW.
        accumulation: completions of an optimiser step; the last step of an epoch takes the remainder.
        strength: lambda of the barrier.
        tau: nats of reverse KL, rmse over a completion, that cost nothing.

    Returns:
        The loss of each optimiser step, nats: CE as a mean over its tokens, the barrier over its completions.
    """
    parameters = list(accumulator.trainable().values())
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, betas=betas, weight_decay=0.0)
    losses = []
    for _ in range(epochs):
        for start in range(0, len(rows), accumulation):
            step = rows[start : start + accumulation]
            tokens = sum(len(completion) for _, completion in step)
            total = 0.0
            for prompt, completion in step:
                # Gates must not change between the training forward and its backward: the reference comes first.
                with torch.no_grad(), accumulator.base():
                    reference_NV = _completion_logits(language_model, prompt, completion)
                logits_NV = _completion_logits(language_model, prompt, completion)
                target_N = _tensor(language_model, completion)[0]
                ce = cross_entropy(logits_NV, target_N, reduction="sum") / tokens
                d_1 = aggregate(
                    kl_divergence(logits_NV, reference_NV), torch.zeros_like(target_N), 1, AGGREGATES["rmse"]
                )
                loss = ce + strength * torch.relu(d_1 - tau).sum() / len(step)
                loss.backward()
                total += float(loss.detach())
            torch.nn.utils.clip_grad_norm_(parameters, _CLIP)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            losses.append(total)
    return losses


def answer(
    language_model: LanguageModel,
    prompts: Sequence[Ids],
    tokens: int,
    vector: SteeringVector | None = None,
    coefficient: float = 0.0,
) -> list[tuple[int, ...]]:
    """Greedy ids after each prompt, the end-of-turn token included where it ended; steered by `vector` if given."""
    shift: AbstractContextManager[None] = (
        nullcontext() if vector is None else vector.applied(language_model, coefficient)
    )
    with shift:
        return [_continue(language_model, prompt, tokens, do_sample=False) for prompt in prompts]


@torch.no_grad()
def persona_log_ratios(
    language_model: LanguageModel, trait: Trait, prompts: Sequence[str], completions: Sequence[Ids]
) -> list[float]:
    """Persona log-ratio of each answer (token ids) to a user's text, nats per token, under the model as it stands."""
    ratios = []
    for text, completion in zip(prompts, completions, strict=True):
        positive, negative = (
            float(_logprobs(language_model, language_model.chat.ids(persona, text), completion).mean())
            for persona in (trait.positive, trait.negative)
        )
        ratios.append(positive - negative)
    return ratios


@torch.no_grad()
def letter_masses(language_model: LanguageModel, prompts: Sequence[Ids]) -> Tensor:
    """Full-vocabulary probability of each option letter right after each prompt, `[Q, K]`, float32, on the CPU."""
    letters = letter_ids(language_model, ALPHABET[:OPTIONS])
    p_QK = []
    for prompt in prompts:
        logits_V = language_model.model(input_ids=_tensor(language_model, prompt), use_cache=False).logits[0, -1]
        p_QK.append(torch.softmax(logits_V.float(), -1)[letters].cpu())
    return torch.stack(p_QK)


def _tensor(language_model: LanguageModel, ids: Ids) -> Tensor:
    return torch.tensor([list(ids)], dtype=torch.long, device=language_model.device)


def _continue(language_model: LanguageModel, prompt: Ids, tokens: int, **sampling: Any) -> tuple[int, ...]:
    """The completion of one prompt by `generate`; a repetition penalty of the model's own would hide over-steering."""
    ids_1T = _tensor(language_model, prompt)
    said_1T = language_model.model.generate(
        input_ids=ids_1T,
        attention_mask=torch.ones_like(ids_1T),
        max_new_tokens=tokens,
        eos_token_id=sorted(language_model.end_ids),
        pad_token_id=language_model.pad_id,
        repetition_penalty=1.0,
        **sampling,
    )
    return tuple(said_1T[0, len(prompt) :].tolist())


def _completion_logits(language_model: LanguageModel, prompt: Ids, completion: Ids) -> Tensor:
    """Float32 logits `[N, V]` that predict each completion token, from one pass over all positions."""
    ids_1T = _tensor(language_model, [*prompt, *completion])
    return language_model.model(input_ids=ids_1T, use_cache=False).logits[0, len(prompt) - 1 : -1].float()


def _logprobs(language_model: LanguageModel, prompt: Ids, completion: Ids) -> Tensor:
    """`log p(token)` of each completion token, `[N]`, float64 so that a mean of it is exact."""
    logp_NV = torch.log_softmax(_completion_logits(language_model, prompt, completion), -1)
    return logp_NV.gather(-1, _tensor(language_model, completion).T)[:, 0].double()


def _log(value: float) -> float:
    """Natural logarithm; a statistic that is not finite counts as above any target, one of 0 as below."""
    if not math.isfinite(value):
        return math.inf
    return math.log(value) if value > 0 else -math.inf


def _chord(low: tuple[float, float], high: tuple[float, float]) -> float:
    """Where the chord crosses zero; the midpoint where it is not finite or crosses at an end of the bracket."""
    (x0, g0), (x1, g1) = low, high
    x = x0 - g0 * (x1 - x0) / (g1 - g0) if math.isfinite(g0) and math.isfinite(g1) else x0
    return x if x0 < x < x1 else (x0 + x1) / 2
