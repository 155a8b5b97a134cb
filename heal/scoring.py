"""Teacher-forced scoring of given completions: final hidden states, log-probabilities, KL.

Rows are padded on the right, so no mask is needed and a batch of many scores as a batch of one.
Shape suffixes: B rows, T positions, N completion positions, D hidden size, V vocabulary.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from heal.divergence import kl_divergence
from heal.models.language_model import LanguageModel, right_padded, token_batches
from heal.progress import Progress, silent
from heal.steering.intervention import Intervention

Ids = Sequence[int]


@torch.no_grad()
def completion_states(
    language_model: LanguageModel,
    prompts: Sequence[Ids],
    completions: Sequence[Ids],
    batch_tokens: int,
    intervention: Intervention | None = None,
    coefficient: float = 0.0,
    progress: Progress = silent,
) -> list[Tensor]:
    """Final hidden states that predict each completion token, `[N_i, D]` for each row, in the model's dtype.

    Args:
        language_model: the model as it stands (gates decide whether base or student).
        prompts: prompt ids by row.
        completions: completion ids by row; none may be empty.
        batch_tokens: tokens of a forward pass.
        intervention: what shifts the model, if anything, by `coefficient`.
        progress: told (rows done, rows).
    """
    rows = [[*prompt, *completion] for prompt, completion in zip(prompts, completions, strict=True)]
    states: dict[int, Tensor] = {}
    shift: AbstractContextManager[None] = (
        nullcontext() if intervention is None else intervention.applied(language_model, coefficient)
    )
    with shift:
        for batch in token_batches([len(row) for row in rows], batch_tokens):
            ids_BT = right_padded([rows[index] for index in batch], language_model.pad_id, language_model.device)
            h_BTD = language_model.decoder(input_ids=ids_BT, use_cache=False).last_hidden_state
            for line, index in enumerate(batch):
                start = len(prompts[index]) - 1
                states[index] = h_BTD[line, start : start + len(completions[index])].clone()
            progress(len(states), len(rows))
    return [states[index] for index in range(len(rows))]


@torch.no_grad()
def token_logprobs(language_model: LanguageModel, states: Sequence[Tensor], completions: Sequence[Ids]) -> list[Tensor]:
    """`log p(token)` of each completion token in float32, `[N_i]` for each row, on the CPU."""
    found = []
    for h_ND, ids in zip(states, completions, strict=True):
        target_N1 = torch.tensor(ids, device=h_ND.device)[:, None]
        found.append(torch.log_softmax(language_model.logits(h_ND), -1).gather(-1, target_N1)[:, 0].cpu())
    return found


@torch.no_grad()
def token_divergences(
    language_model: LanguageModel, states_p: Sequence[Tensor], states_q: Sequence[Tensor]
) -> list[Tensor]:
    """`KL(p || q)` per completion position, nats, float32, `[N_i]` for each row, on the CPU."""
    return [
        kl_divergence(language_model.logits(p_ND), language_model.logits(q_ND)).cpu()
        for p_ND, q_ND in zip(states_p, states_q, strict=True)
    ]
