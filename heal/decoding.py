"""Decodes many rows side by side; a row's completion depends only on its prompt, dose and seed.

Shape suffixes: B rows, T positions, V vocabulary.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from heal.models.batching import in_parts
from heal.models.cached import CachedRows, padded
from heal.models.language_model import LanguageModel
from heal.models.packing import MIN_SHARED, shared
from heal.models.recorded import Recorded
from heal.parallel import over_rows
from heal.progress import Progress, silent
from heal.randomness import generator
from heal.steering.intervention import Intervention

LONGEST_PERIOD = 8  # tokens of the piece that a loop repeats
SHORTEST_LOOP = 16  # tokens
_QUEUED = 8  # steps
_RECORDED = 16  # steps that pay for recording one


@dataclass(frozen=True)
class Sampling:
    """How a next token is drawn; temperature 0 is greedy."""

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0


GREEDY = Sampling()

Until = Callable[[Sequence[int]], bool]


@dataclass(frozen=True)
class Decoded:
    """The completion of one row.

    Attributes:
        ids: sampled token ids, the end-of-turn token included when the row ended.
        ended: whether it ended within the token budget.
        finite: False when the logits turned NaN or inf; the row stops there.
        looped: whether it was stopped because it had looped.
        stopped: whether it was stopped by what the caller waited for.
        states_ND: the final hidden states from which each token was chosen, if requested.
    """

    ids: tuple[int, ...]
    ended: bool
    finite: bool = True
    looped: bool = False
    stopped: bool = False
    states_ND: Tensor | None = None


@torch.no_grad()
def decode(
    language_model: LanguageModel,
    prompts: Sequence[Sequence[int]],
    tokens: int,
    intervention: Intervention | None = None,
    coefficients: Sequence[float] | None = None,
    *,
    sampling: Sampling = GREEDY,
    seeds: Sequence[tuple[int | str, ...]] | None = None,
    loop_share: float | None = None,
    until: Until | None = None,
    keep_states: bool = False,
    progress: Progress = silent,
) -> list[Decoded]:
    """Continues each prompt by at most `tokens` tokens; several processes share the rows.

    Args:
        language_model: the model as it stands.
        prompts: token ids, one row each.
        tokens: token budget.
        intervention: what shifts the model, if anything.
        coefficients: its coefficient for each row.
        sampling: how tokens are drawn.
        seeds: what each row's randomness is derived from; required unless greedy.
        loop_share: a row stops once a loop makes up this fraction of its token budget; None: never.
        until: stops a row, given the ids that it has said; None: nothing but an end of turn.
        keep_states: also keep the final hidden states; those of another process's rows are on the CPU.
        progress: called with (rows finished, rows).
    """
    if sampling.temperature > 0 and seeds is None:
        raise ValueError("decode: sampling requires seeds")
    if (intervention is None) != (coefficients is None):
        raise ValueError(
            "decode: an intervention requires a coefficient for each row, and coefficients an intervention"
        )
    loop = None if loop_share is None else max(SHORTEST_LOOP, int(loop_share * tokens) + 1)
    rules = _Rules(tokens, sampling, loop, until, keep_states)

    def continued(share: range) -> list[Decoded]:
        results: dict[int, Decoded] = {}

        def run(rows: Sequence[int]) -> None:
            uniforms_BT = None
            if seeds is not None:
                uniforms_BT = torch.stack([torch.rand(tokens, generator=generator(*seeds[row])) for row in rows])
            shift = None
            if intervention is not None and coefficients is not None:
                shift = intervention, [coefficients[row] for row in rows]
            batch = _Batch(language_model, [prompts[row] for row in rows], rules, shift, uniforms_BT)
            # The other processes are taken to be as far with their shares.
            done = len(prompts) / len(share)
            batch.run(lambda: progress(int((len(results) + batch.finished_count) * done), len(prompts)))
            results.update(zip(rows, batch.completions(), strict=True))

        order = sorted(share, key=lambda row: (-len(prompts[row]), row))
        while order:
            size = language_model.batching.rows
            first = len(prompts[order[0]])
            together = [row for row in order[:size] if language_model.pads or len(prompts[row]) == first]
            in_parts(together, run, partial(language_model.batching.shrink_rows, size))
            order = order[len(together) :]
        return [results[row] for row in share]

    return over_rows(len(prompts), continued)


@dataclass(frozen=True)
class _Rules:
    """What holds for every row: token budget, how tokens are drawn, tokens of a loop that end it, what else does."""

    tokens: int
    sampling: Sampling
    loop: int | None
    until: Until | None
    keep_states: bool


class _Batch:
    """Rows decoded together over one cache; rows that end leave it.

    The common beginning of all prompts is read once per coefficient where the model shares. Prompts are padded on the
    left; a model that does not mask padding gets prompts of one length.
    """

    def __init__(
        self,
        language_model: LanguageModel,
        prompts: Sequence[Sequence[int]],
        rules: _Rules,
        shift: tuple[Intervention, list[float]] | None,
        uniforms_BT: Tensor | None,
    ):
        self.language_model, self.rules = language_model, rules
        self.uniforms_BT = None if uniforms_BT is None else uniforms_BT.to(language_model.device)
        self.intervention: Intervention | None = shift[0] if shift else None
        self.coefficients: list[float] = shift[1] if shift else []
        self.active = list(range(len(prompts)))  # row of the batch that each line of the tensors holds
        self.step = 0  # tokens that every line has
        self.step_1 = torch.zeros(1, dtype=torch.long, device=language_model.device)  # the same, where it draws
        self.together = steps_at_once(language_model.device)
        self.said: list[list[int]] = [[] for _ in prompts]
        self.state = ["running"] * len(prompts)
        # By row and period: how many tokens in succession equal the one a period before.
        self.repeats = [[0] * LONGEST_PERIOD for _ in prompts]
        self.states: list[list[Tensor]] | None = [[] for _ in prompts] if rules.keep_states else None
        read, self.rows = self._read_beginning(prompts)
        rest = [list(prompt[read:]) for prompt in prompts]
        self.real_BT: Tensor | None  # where the input holds tokens, 1, and padding, 0; None: tokens alone
        self.input_BT, self.real_BT = padded(rest, language_model.pad_id, language_model.device)

    def _read_beginning(self, prompts: Sequence[Sequence[int]]) -> tuple[int, CachedRows]:
        """Reads the prompts' common beginning; its length (0 where that is inexact or does not pay), and the rows."""
        longest = max(map(len, prompts)) + self.rules.tokens
        count = min(min(shared(prompts[0], prompt) for prompt in prompts), min(map(len, prompts)) - 1)
        kinds = sorted(set(self.coefficients)) or [0.0]
        # Padding lies between the beginning and the rest, where a sliding window would count it.
        if count < MIN_SHARED or len(kinds) == len(prompts) or longest > self.language_model.longest_shared:
            return 0, CachedRows(self.language_model, len(prompts))
        rows = CachedRows(self.language_model, len(kinds))
        with self._shifted(kinds):
            rows.read(torch.tensor([list(prompts[0][:count])] * len(kinds), device=self.language_model.device))
        lines = [kinds.index(c) for c in self.coefficients] if self.coefficients else [0] * len(prompts)
        rows.select(torch.tensor(lines, device=self.language_model.device))
        return count, rows

    def _shifted(self, coefficients: Sequence[float]) -> AbstractContextManager[None]:
        if self.intervention is None:
            return nullcontext()
        return self.intervention.applied(self.language_model, coefficients)

    @property
    def finished_count(self) -> int:
        return sum(state != "running" for state in self.state)

    @property
    def done(self) -> bool:
        return self.finished_count == len(self.state)

    def run(self, looked: Callable[[], None]) -> None:
        """Decodes until every row has finished; `looked` is called whenever what they said was looked at."""
        while not self.done and self.step < self.rules.tokens:
            with self._shifted([self.coefficients[row] for row in self.active if self.coefficients]):
                if self._fix():
                    recorded = self._recorded()
                    while not self._sparse:
                        self._advance(recorded)
                        looked()
                else:
                    self._advance(self._next)
                    looked()
            self._trim()

    def _advance(self, next_tokens: Callable[[], tuple[Tensor, ...]]) -> None:
        """Adds tokens to every running row, as many as are looked at together.

        On a device whose work is only queued, looking at a token waits for all of it: there several steps are queued
        first. What a row says after its end is not looked at.
        """
        steps = min(self.together, self.rules.tokens - self.step)
        said = [next_tokens() for _ in range(steps)]
        self.step += steps
        finite_BT = torch.stack([finite_B for _, finite_B, *_ in said], dim=1).tolist()
        token_BT = torch.stack([token_B for token_B, *_ in said], dim=1).tolist()
        for line, row in enumerate(self.active):
            for index, (_, _, *states) in enumerate(said):
                if self.state[row] != "running":
                    break
                if not finite_BT[line][index]:
                    self.state[row] = "not finite"
                    break
                if self.states is not None:
                    self.states[row].append(states[0][line])
                self._add(row, token_BT[line][index])

    def _next(self) -> tuple[Tensor, ...]:
        """Each line's next token, whether its logits were finite, and, if kept, the states it was chosen from."""
        h_BD = self.rows.read(self.input_BT, self.real_BT)
        logits_BV = self.language_model.logits(h_BD)
        u_B = None
        if self.uniforms_BT is not None:
            u_B = self.uniforms_BT.index_select(1, self.step_1)[:, 0]
            self.step_1.add_(1)
        token_B = choose(logits_BV, self.rules.sampling, u_B)
        self.input_BT, self.real_BT = token_B[:, None], None
        said = token_B, torch.isfinite(logits_BV.amax(-1))
        return said if self.states is None else (*said, h_BD)

    def _fix(self) -> bool:
        """Makes the rows ready to be recorded, where the model may be and enough tokens remain to pay for it."""
        remaining = self.rules.tokens - self.step
        if not self.language_model.records or not self.step or remaining < _RECORDED:
            return False
        return self.rows.is_fixed or self.rows.fix(remaining)

    def _recorded(self) -> Recorded:
        """`_next` as one recording, which reads each token from where the one before wrote it."""
        input_B1 = self.input_BT.clone()

        def step() -> tuple[Tensor, ...]:
            self.input_BT = input_B1
            said = self._next()
            input_B1.copy_(self.input_BT)
            self.input_BT = input_B1
            return said

        return Recorded(step, self.language_model.device)

    def _add(self, row: int, token: int) -> None:
        """Appends a token to a row; ends it where the caller says so, at an end of turn, a full budget or a loop."""
        said, repeats = self.said[row], self.repeats[row]
        for index in range(min(LONGEST_PERIOD, len(said))):
            repeats[index] = repeats[index] + 1 if said[-1 - index] == token else 0
        said.append(token)
        if self.rules.until is not None and self.rules.until(said):
            self.state[row] = "stopped"
        elif token in self.language_model.end_ids:
            self.state[row] = "ended"
        elif len(said) == self.rules.tokens:
            self.state[row] = "full"
        elif self.rules.loop is not None:
            runs = [(repeated + period, period) for period, repeated in enumerate(repeats, start=1) if repeated]
            if any(length >= max(self.rules.loop, 3 * period) for length, period in runs):
                self.state[row] = "looped"

    @property
    def _sparse(self) -> bool:
        """Whether a quarter of the lines has finished; half of them where fewer have to be recorded anew."""
        running = sum(self.state[row] == "running" for row in self.active)
        return running <= (0.5 if self.rows.is_fixed else 0.75) * len(self.active)

    def _trim(self) -> None:
        """Drops finished rows from the tensors once there are enough of them."""
        lines = [line for line, row in enumerate(self.active) if self.state[row] == "running"]
        if not lines or not self._sparse:
            return
        index_B = torch.tensor(lines, device=self.input_BT.device)
        self.rows.select(index_B)
        self.input_BT = self.input_BT[index_B]
        if self.uniforms_BT is not None:
            self.uniforms_BT = self.uniforms_BT[index_B]
        self.active = [self.active[line] for line in lines]

    def completions(self) -> list[Decoded]:
        def states(row: int) -> Tensor | None:
            if self.states is None:
                return None
            kept = self.states[row]
            return torch.stack(kept) if kept else self.input_BT.new_empty(0)

        return [
            Decoded(
                tuple(ids), state == "ended", state != "not finite", state == "looped", state == "stopped", states(row)
            )
            for row, (ids, state) in enumerate(zip(self.said, self.state, strict=True))
        ]


def steps_at_once(device: torch.device) -> int:
    """Steps of decoding between two looks at what was said: more than one where looking makes the device wait."""
    return 1 if device.type == "cpu" else _QUEUED


def choose(logits_BV: Tensor, sampling: Sampling, u_B: Tensor | None) -> Tensor:
    """The next token of each row, `[B]`.

    Sampling inverts the cumulative distribution of the kept tokens, in the order of their ids, at one uniform
    number per row: the same number gives the same token in any batch.

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
    p_BK = torch.where(before_BK < sampling.top_p, p_BK, 0.0)  # the most probable token always stays
    id_BK, by_id_BK = id_BK.sort(dim=-1)
    cumulative_BK = p_BK.gather(-1, by_id_BK).cumsum(-1)
    threshold_B1 = u_B[:, None] * cumulative_BK[:, -1:]
    return id_BK.gather(-1, (cumulative_BK <= threshold_B1).sum(-1, keepdim=True).clamp(max=id_BK.shape[-1] - 1))[:, 0]
