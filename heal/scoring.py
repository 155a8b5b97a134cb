"""Teacher-forced scoring of given rows: final hidden states, log-probabilities, KL. The only batched scorer.

Common beginnings of rows are computed once (heal/models/packing.py), and a row scores the same in any batch. What
returns hidden states computes in the process that asks; what returns logits and log-probabilities of prompts or
completions shares the rows with the other processes.

Shape suffixes: N completion positions, D hidden size, V vocabulary.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import torch
from torch import Tensor

from heal.divergence import kl_divergence
from heal.models.batching import in_parts
from heal.models.language_model import LanguageModel
from heal.models.packing import halves_of_trees
from heal.parallel import over_rows
from heal.progress import Progress, silent
from heal.steering.intervention import Intervention

Ids = Sequence[int]


@torch.no_grad()
def final_states(
    language_model: LanguageModel, rows: Sequence[Ids], starts: Sequence[int], progress: Progress = silent
) -> list[Tensor]:
    """Final hidden states of each row from position `starts[i]` on, `[N_i, D]`, in the model's dtype.

    Args:
        language_model: the model as it stands (gates and steering are the caller's).
        rows: token ids by row; none may be empty.
        starts: first position returned of each row.
        progress: called with (rows done, rows).
    """
    states: dict[int, Tensor] = {}
    batching = language_model.batching

    def score(trees: Sequence[Sequence[int]]) -> None:
        packed = language_model.pack(rows, trees)
        h_MD = language_model.hidden_states(packed)
        for row, nodes in zip([row for tree in trees for row in tree], packed.nodes, strict=True):
            states[row] = h_MD[nodes[starts[row] :]]
        progress(len(states), len(rows))

    shrink = partial(batching.shrink_tokens, batching.tokens)
    for trees in language_model.plan(rows, batching.tokens):
        in_parts(trees, score, shrink, halves_of_trees)
    return [states[row] for row in range(len(rows))]


def completion_states(
    language_model: LanguageModel,
    prompts: Sequence[Ids],
    completions: Sequence[Ids],
    intervention: Intervention | None = None,
    coefficient: float = 0.0,
    progress: Progress = silent,
) -> list[Tensor]:
    """Final hidden states that predict each completion token, `[N_i, D]` for each row, in the model's dtype.

    Args:
        language_model: the model as it stands (gates decide whether base or student).
        prompts: prompt ids by row.
        completions: completion ids by row; none may be empty.
        intervention: what shifts the model, if anything, by `coefficient`.
        progress: called with (rows done, rows).
    """
    shift: AbstractContextManager[None] = (
        nullcontext() if intervention is None else intervention.applied(language_model, coefficient)
    )
    # The last token predicts nothing that is scored.
    rows = [[*prompt, *completion[:-1]] for prompt, completion in zip(prompts, completions, strict=True)]
    with shift:
        return final_states(language_model, rows, [len(prompt) - 1 for prompt in prompts], progress)


def next_token_logits(language_model: LanguageModel, prompts: Sequence[Ids]) -> Tensor:
    """Float32 logits `[rows, V]` of the token after each prompt, on the CPU."""

    def logits(share: range) -> list[Tensor]:
        states = _after(language_model, [prompts[row] for row in share])
        with torch.no_grad():
            return list(torch.cat(_chunks(language_model, language_model.logits, torch.cat(states))))

    return torch.stack(over_rows(len(prompts), logits))


def option_logprobs(language_model: LanguageModel, prompts: Sequence[Ids], options: Sequence[Ids]) -> Tensor:
    """Full-vocabulary log-probability of each of the tokens `options[i]` right after `prompts[i]`.

    Returns:
        `[rows, options]`, computed in float32, float64, on the CPU.
    """

    def logprobs(h_ND: Tensor, option_NK: Tensor) -> Tensor:
        return torch.log_softmax(language_model.logits(h_ND), -1).gather(-1, option_NK)

    def scored(share: range) -> list[Tensor]:
        states = _after(language_model, [prompts[row] for row in share])
        return _pooled(language_model, logprobs, states, [torch.tensor([list(options[row])]) for row in share])

    return torch.cat(over_rows(len(prompts), scored)).double()


def _after(language_model: LanguageModel, prompts: Sequence[Ids]) -> list[Tensor]:
    """The final hidden state after each prompt, `[1, D]`."""
    return final_states(language_model, prompts, [len(prompt) - 1 for prompt in prompts])


def completion_logprobs(
    language_model: LanguageModel, prompts: Sequence[Ids], completions: Sequence[Ids]
) -> list[Tensor]:
    """`log p(token)` of each completion token after its prompt, float32, `[N_i]` for each row, on the CPU."""

    def scored(share: range) -> list[Tensor]:
        said = [completions[row] for row in share]
        states = completion_states(language_model, [prompts[row] for row in share], said)
        return token_logprobs(language_model, states, said)

    return over_rows(len(prompts), scored)


def token_logprobs(language_model: LanguageModel, states: Sequence[Tensor], completions: Sequence[Ids]) -> list[Tensor]:
    """`log p(token)` of each completion token in float32, `[N_i]` for each row, on the CPU."""

    def logprobs(h_ND: Tensor, target_N: Tensor) -> Tensor:
        return torch.log_softmax(language_model.logits(h_ND), -1).gather(-1, target_N[:, None])[:, 0]

    return _pooled(language_model, logprobs, states, [torch.tensor(ids, dtype=torch.long) for ids in completions])


def token_divergences(
    language_model: LanguageModel, states_p: Sequence[Tensor], states_q: Sequence[Tensor]
) -> list[Tensor]:
    """`KL(p || q)` per completion position, nats, float32, `[N_i]` for each row, on the CPU."""

    def divergences(p_ND: Tensor, q_ND: Tensor) -> Tensor:
        return kl_divergence(language_model.logits(p_ND), language_model.logits(q_ND))

    return _pooled(language_model, divergences, states_p, states_q)


def token_divergences_both_ways(
    language_model: LanguageModel, states_p: Sequence[Tensor], states_q: Sequence[Tensor]
) -> tuple[list[Tensor], list[Tensor]]:
    """`KL(p || q)` and `KL(q || p)`, each as `token_divergences` gives it, from one product with the head."""

    def divergences(p_ND: Tensor, q_ND: Tensor) -> Tensor:
        p_NV, q_NV = language_model.logits(p_ND), language_model.logits(q_ND)
        return torch.stack([kl_divergence(p_NV, q_NV), kl_divergence(q_NV, p_NV)], -1)

    both = _pooled(language_model, divergences, states_p, states_q)
    return [kl_N2[:, 0] for kl_N2 in both], [kl_N2[:, 1] for kl_N2 in both]


@torch.no_grad()
def _pooled(
    language_model: LanguageModel,
    value: Callable[[Tensor, Tensor], Tensor],
    one: Sequence[Tensor],
    other: Sequence[Tensor],
) -> list[Tensor]:
    """Applies `value` position by position, the positions of all rows pooled in chunks that fit the head's budget."""
    if not one:
        return []
    lengths = [len(states) for states in one]
    pooled_N = torch.cat(_chunks(language_model, value, torch.cat(list(one)), torch.cat(list(other))))
    return list(pooled_N.split(lengths))


def _chunks(language_model: LanguageModel, value: Callable[..., Tensor], *pooled: Tensor) -> list[Tensor]:
    """`value` of the same positions of each of `pooled`, chunk by chunk, on the CPU."""
    chunks: list[Tensor] = []

    def compute(part: slice) -> None:
        chunks.append(value(*(each[part].to(language_model.device) for each in pooled)).cpu())

    language_model.over_positions(len(pooled[0]), compute)
    return chunks
