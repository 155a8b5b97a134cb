"""Decodes many rows side by side; what a row says depends on nothing but its prompt, dose and seed.

Shape suffixes: B rows, T positions, V vocabulary.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import DynamicCache

from heal.models.language_model import LanguageModel
from heal.progress import Progress, silent
from heal.randomness import generator
from heal.steering.intervention import Intervention


@dataclass(frozen=True)
class Sampling:
    """How a next token is drawn; temperature 0 is greedy."""

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0


GREEDY = Sampling()


@dataclass(frozen=True)
class Completion:
    """What one row said.

    Attributes:
        ids: sampled token ids, the end-of-turn token included when the row ended.
        ended: whether it ended within the token budget.
        finite: False when the logits turned NaN or inf; the row stops there.
    """

    ids: tuple[int, ...]
    ended: bool
    finite: bool = True


@torch.inference_mode()
def decode(
    language_model: LanguageModel,
    prompts: Sequence[Sequence[int]],
    tokens: int,
    intervention: Intervention | None = None,
    coefficients: Sequence[float] | None = None,
    sampling: Sampling = GREEDY,
    seeds: Sequence[tuple[int | str, ...]] | None = None,
    batch_size: int = 96,
    progress: Progress = silent,
) -> list[Completion]:
    """Continues each prompt by at most `tokens` tokens.

    Args:
        language_model: the model as it stands.
        prompts: token ids, one row each.
        tokens: token budget.
        intervention: what shifts the model, if anything.
        coefficients: its coefficient for each row.
        sampling: how tokens are drawn.
        seeds: what each row's randomness is derived from; needed unless greedy.
        batch_size: rows side by side; decides nothing but speed.
        progress: told (rows finished, rows).
    """
    if sampling.temperature > 0 and seeds is None:
        raise ValueError("decode: sampling needs seeds")
    order = sorted(range(len(prompts)), key=lambda row: (-len(prompts[row]), row))
    results: dict[int, Completion] = {}
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        uniforms_BT = None
        if seeds is not None:
            uniforms_BT = torch.stack([torch.rand(tokens, generator=generator(*seeds[row])) for row in rows])
        batch = _Batch(language_model, [prompts[row] for row in rows], tokens)
        shift = [coefficients[row] for row in rows] if coefficients is not None else None
        for step in range(tokens):
            u_B = None if uniforms_BT is None else uniforms_BT[:, step]
            batch.step(intervention, shift, sampling, u_B)
            progress(len(results) + batch.finished_count, len(prompts))
            if batch.done:
                break
        results |= dict(zip(rows, batch.completions(), strict=True))
    return [results[row] for row in range(len(prompts))]


class _Batch:
    """Rows decoding together: left-padded prompts, one cache; rows that ended leave it."""

    def __init__(self, language_model: LanguageModel, prompts: Sequence[Sequence[int]], tokens: int):
        self.language_model = language_model
        self.tokens = tokens
        device = language_model.device
        width = max(map(len, prompts))
        pads = [width - len(prompt) for prompt in prompts]
        self.input_BT = torch.tensor(
            [[language_model.pad_id] * pad + list(prompt) for pad, prompt in zip(pads, prompts, strict=True)],
            device=device,
        )
        self.mask_BT = torch.tensor([[0] * pad + [1] * (width - pad) for pad in pads], device=device)
        self.cache = DynamicCache(config=language_model.model.config.get_text_config())
        self.active = list(range(len(prompts)))  # row of each line of the tensors
        self.said: list[list[int]] = [[] for _ in prompts]
        self.state = ["running"] * len(prompts)

    @property
    def finished_count(self) -> int:
        return sum(state != "running" for state in self.state)

    @property
    def done(self) -> bool:
        return self.finished_count == len(self.state)

    def step(
        self,
        intervention: Intervention | None,
        coefficients: Sequence[float] | None,
        sampling: Sampling,
        u_B: Tensor | None,
    ) -> None:
        """Adds one token to every running row."""
        position_BT = (self.mask_BT.cumsum(-1) - 1).clamp(min=0)[:, -self.input_BT.shape[1] :]
        shift: AbstractContextManager[None] = nullcontext()
        if intervention is not None:
            assert coefficients is not None
            shift = intervention.applied(self.language_model, [coefficients[row] for row in self.active])
        with shift:
            h_BTD = self.language_model.decoder(
                input_ids=self.input_BT,
                attention_mask=self.mask_BT,
                position_ids=position_BT,
                past_key_values=self.cache,
                use_cache=True,
            ).last_hidden_state
        logits_BV = self.language_model.logits(h_BTD[:, -1])
        finite = torch.isfinite(logits_BV.amax(-1)).tolist()
        u_active = None if u_B is None else u_B[self.active].to(logits_BV.device)
        next_B = choose(logits_BV, sampling, u_active)
        for line, (row, token) in enumerate(zip(self.active, next_B.tolist(), strict=True)):
            if self.state[row] != "running":
                continue
            if not finite[line]:
                self.state[row] = "not finite"
                continue
            self.said[row].append(token)
            if token in self.language_model.end_ids:
                self.state[row] = "ended"
            elif len(self.said[row]) == self.tokens:
                self.state[row] = "full"
        self.input_BT = next_B[:, None]
        self.mask_BT = torch.cat([self.mask_BT, torch.ones_like(self.input_BT)], dim=1)
        self._trim()

    def _trim(self) -> None:
        """Drops finished rows from the tensors once a quarter of them has finished."""
        lines = [line for line, row in enumerate(self.active) if self.state[row] == "running"]
        if not lines or len(lines) > 0.75 * len(self.active):
            return
        index = torch.tensor(lines, device=self.input_BT.device)
        self.cache.batch_select_indices(index)
        self.input_BT, self.mask_BT = self.input_BT[index], self.mask_BT[index]
        self.active = [self.active[line] for line in lines]

    def completions(self) -> list[Completion]:
        return [
            Completion(tuple(ids), state == "ended", state != "not finite")
            for ids, state in zip(self.said, self.state, strict=True)
        ]


def choose(logits_BV: Tensor, sampling: Sampling, u_B: Tensor | None) -> Tensor:
    """The next token of each row, `[B]`.

    Sampling inverts the cumulative distribution of the kept tokens at one uniform number a row, the
    tokens in the order of their ids: the same number gives the same token in any batch.

    Args:
        logits_BV: float32 logits.
        sampling: temperature, then top-k, then top-p.
        u_B: one number in [0, 1) for each row; None when greedy.
    """
    if sampling.temperature == 0:
        return logits_BV.argmax(-1)
    assert u_B is not None
    scaled_BV = torch.nan_to_num(logits_BV / sampling.temperature, nan=0.0)
    count = scaled_BV.shape[-1]
    top_BK, id_BK = scaled_BV.topk(min(sampling.top_k, count) if sampling.top_k else count, dim=-1)
    p_BK = torch.softmax(top_BK, dim=-1)
    before_BK = p_BK.cumsum(-1) - p_BK
    p_BK = torch.where(before_BK < sampling.top_p, p_BK, 0.0)  # the most probable one always stays
    id_BK, by_id_BK = id_BK.sort(dim=-1)
    cumulative_BK = p_BK.gather(-1, by_id_BK).cumsum(-1)
    threshold_B1 = u_B[:, None] * cumulative_BK[:, -1:]
    return id_BK.gather(-1, (cumulative_BK <= threshold_B1).sum(-1, keepdim=True).clamp(max=id_BK.shape[-1] - 1))[:, 0]
