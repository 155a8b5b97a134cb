"""Long greedy rollouts at multiples of a dose: KL token by token, and for how many tokens the model can still answer.

A dose set by the first tokens says nothing about the hundredth. Every prompt is therefore continued at every
multiple `alpha` of the calibrated coefficient, each path is scored with the intervention on and off, and at forks
along it a yes/no slot is spliced in. A rollout dies at the first fork below ALIVE and stays dead; one that ends by
itself, or reaches the token budget alive, is censored. See docs/method.md, Interventions compared.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from heal.decoding import Decoded, decode
from heal.errors import UserError
from heal.evaluation.probe import ProbeFormat, interruption
from heal.evaluation.readouts.alive import ALIVE
from heal.models.language_model import LanguageModel
from heal.parallel import over_rows
from heal.progress import Progress, silent
from heal.scoring import completion_states, final_states, token_divergences
from heal.steering.intervention import Intervention

Ids = Sequence[int]

ALPHAS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 4.0)


@dataclass(frozen=True)
class Trajectory:
    """One prompt's rollout at one multiple of the dose.

    Attributes:
        alpha: multiple of the calibrated coefficient; 0: the intervention is not applied.
        coefficient: the coefficient itself.
        prompt: index of the prompt.
        ids: the tokens generated, including the end-of-turn token if it ended.
        kl: `KL(on || off)` of each of these tokens, nats; NaN where logits were not finite.
        ended: whether it ended by itself.
        finite: False when the logits turned NaN or inf; the rollout stops there.
        forks: token counts after which it was interrupted.
        masses: probability mass on the probe's answers at each fork.
        death: tokens after which it is dead; None: never.
        censored_at: tokens after which it was last known to be alive: those before its end of turn, which are all
            that can be probed, or all of them; None if it died.
    """

    alpha: float
    coefficient: float
    prompt: int
    ids: tuple[int, ...]
    kl: tuple[float, ...]
    ended: bool
    finite: bool
    forks: tuple[int, ...]
    masses: tuple[float, ...]
    death: int | None
    censored_at: int | None

    @property
    def time(self) -> int:
        """Tokens until it died or was censored."""
        tokens = self.censored_at if self.death is None else self.death
        assert tokens is not None
        return tokens


def coefficients_at(
    c_star: float, alphas: Iterable[float] = ALPHAS, largest: float | None = None
) -> dict[float, float]:
    """The coefficient of each multiple of the calibrated one, at most the `largest` meaningful one."""
    return {alpha: min(alpha * c_star, math.inf if largest is None else largest) for alpha in alphas}


def by_alpha(trajectories: Iterable[Trajectory]) -> dict[float, list[Trajectory]]:
    """Trajectories by multiple of the dose, the smallest first."""
    groups: dict[float, list[Trajectory]] = {}
    for trajectory in sorted(trajectories, key=lambda one: one.alpha):
        groups.setdefault(trajectory.alpha, []).append(trajectory)
    return groups


def fork_positions(tokens: int, forks: int) -> tuple[int, ...]:
    """Token counts after which a rollout is interrupted: `forks` of them, evenly spread, the last at `tokens`.

    Raises:
        UserError: no token, no fork, or more forks than tokens.
    """
    if not 1 <= forks <= tokens:
        raise UserError(f"forks={forks}: a rollout of {tokens} tokens can be interrupted 1 to {max(tokens, 1)} times")
    return tuple(round(tokens * fork / forks) for fork in range(1, forks + 1))


def roll_out(
    language_model: LanguageModel,
    intervention: Intervention,
    coefficients_by_alpha: Mapping[float, float],
    prompts_ids: Sequence[Ids],
    *,
    tokens: int,
    forks: int,
    probe_format: ProbeFormat,
    off: Callable[[], AbstractContextManager[None]] = nullcontext,
    progress: Progress = silent,
) -> list[Trajectory]:
    """Decodes greedily at every alpha, scores each path with the intervention on and off, and probes it at its forks.

    Both scores are teacher-forced, by one scorer, in passes that are packed identically: where `off` changes nothing,
    the KL at alpha 0 is exactly 0. A death is dated by the fork that shows it, up to one interval too late.

    Args:
        language_model: the model as it stands.
        intervention: what is being dosed.
        coefficients_by_alpha: its coefficient at each multiple of the dose; at alpha 0 it is not applied at all.
        prompts_ids: prompt ids.
        tokens: token budget of a rollout.
        forks: how often a rollout that uses its whole budget is interrupted.
        probe_format: the format of the yes/no slot.
        off: context in which the reference answers (default: the model without the intervention).
        progress: told (rollouts decoded, scored and probed, three times all rollouts).

    Returns:
        one trajectory for each alpha and prompt, alphas in the order given, prompts within.

    Raises:
        UserError: the forks do not fit the tokens, or the tokens do not fit the model's context.
        ValueError: no prompts, or the tokenizer has no answer slot in this format.
    """
    if not prompts_ids:
        raise ValueError("roll_out: no prompts")
    positions = fork_positions(tokens, forks)
    splice, answers = interruption(language_model, probe_format)
    longest = max(map(len, prompts_ids))
    if longest + tokens + len(splice) > language_model.context:
        raise UserError(
            f"tokens={tokens}: with a prompt of {longest} tokens and {len(splice)} of the probe, that is more than "
            f"the model's context of {language_model.context}"
        )
    paths = _decode(language_model, intervention, coefficients_by_alpha, prompts_ids, tokens, progress)
    count = len(prompts_ids)
    trajectories: list[Trajectory] = []
    for alpha, coefficient in coefficients_by_alpha.items():
        shift, alpha_paths = (intervention if alpha else None), paths[alpha]
        kl = _divergences(language_model, shift, coefficient, prompts_ids, alpha_paths, off)
        progress(len(paths) * count + 2 * len(trajectories) + count, 3 * len(paths) * count)
        probed = [tuple(fork for fork in positions if fork <= len(path.ids) - path.ended) for path in alpha_paths]
        befores = [
            [*prompt, *path.ids[:fork]]
            for prompt, path, reached in zip(prompts_ids, alpha_paths, probed, strict=True)
            for fork in reached
        ]
        with nullcontext() if shift is None else shift.applied(language_model, coefficient):
            masses = iter(slot_masses(language_model, befores, splice, answers))
        for prompt, (path, reached) in enumerate(zip(alpha_paths, probed, strict=True)):
            kept = tuple(next(masses) for _ in reached)
            death = death_of(reached, kept, kl[prompt], path.finite)
            trajectories.append(
                Trajectory(
                    alpha, coefficient, prompt, path.ids, kl[prompt], path.ended, path.finite, reached, kept,
                    death, len(path.ids) - path.ended if death is None else None,
                )
            )  # fmt: skip
        progress(len(paths) * count + 2 * len(trajectories), 3 * len(paths) * count)
    return trajectories


def slot_masses(language_model: LanguageModel, rows: Sequence[Ids], splice: Ids, answers: Sequence[int]) -> list[float]:
    """Probability mass on `answers` after each row followed by `splice`, for the model as it stands.

    Common beginnings are computed once: the forks of one rollout are branches of one prefix tree.
    """

    def probed(share: range) -> list[float]:
        probed_rows = [[*rows[row], *splice] for row in share]
        pooled_ND = torch.cat(final_states(language_model, probed_rows, [len(row) - 1 for row in probed_rows]))
        masses: list[float] = []

        def measure(part: slice) -> None:
            p_NV = torch.softmax(language_model.logits(pooled_ND[part]), -1)
            masses.extend(p_NV[:, list(answers)].sum(-1).tolist())

        with torch.no_grad():
            language_model.over_positions(len(pooled_ND), measure)
        return masses

    return over_rows(len(rows), probed)


def death_of(forks: Sequence[int], masses: Sequence[float], kl: Sequence[float], finite: bool) -> int | None:
    """Tokens after which a rollout is dead; None if it never dies.

    It dies at the first fork whose mass is below ALIVE, or at the first token whose logits are not finite.

    Args:
        forks: token counts after which it was interrupted.
        masses: mass on the answers there.
        kl: nats of each token, NaN where either side's logits were not finite.
        finite: False if the rollout stopped because the next logits were not finite.
    """
    died = [fork for fork, mass in zip(forks, masses, strict=True) if not mass >= ALIVE]  # NaN counts as below
    died += [token for token, nats in enumerate(kl) if math.isnan(nats)]
    died += [] if finite else [len(kl)]
    return min(died, default=None)


def _decode(
    language_model: LanguageModel,
    intervention: Intervention,
    coefficients_by_alpha: Mapping[float, float],
    prompts_ids: Sequence[Ids],
    tokens: int,
    progress: Progress,
) -> dict[float, list[Decoded]]:
    """The paths by alpha, decoded side by side; those at alpha 0 separately where coefficient 0 has an effect."""
    count = len(prompts_ids)
    together = [alpha for alpha in coefficients_by_alpha if alpha or intervention.dosing.vanishes]
    apart = [alpha for alpha in coefficients_by_alpha if alpha not in together]
    total = 3 * len(coefficients_by_alpha) * count
    doses = [coefficients_by_alpha[alpha] if alpha else 0.0 for alpha in together for _ in prompts_ids]
    completions = decode(
        language_model, list(prompts_ids) * len(together), tokens, intervention, doses,
        progress=lambda done, _: progress(done, total),
    )  # fmt: skip
    completions += decode(
        language_model, list(prompts_ids) * len(apart), tokens,
        progress=lambda done, _: progress(len(together) * count + done, total),
    )  # fmt: skip
    return {
        alpha: completions[start : start + count]
        for alpha, start in zip([*together, *apart], range(0, len(completions), count), strict=True)
    }


def _divergences(
    language_model: LanguageModel,
    shift: Intervention | None,
    coefficient: float,
    prompts_ids: Sequence[Ids],
    paths: Sequence[Decoded],
    off: Callable[[], AbstractContextManager[None]],
) -> list[tuple[float, ...]]:
    """`KL(on || off)` of each path's tokens; empty for a path without tokens."""
    said = [row for row, path in enumerate(paths) if path.ids]

    def divergences(share: range) -> list[Tensor]:
        prompts = [prompts_ids[said[place]] for place in share]
        completions = [paths[said[place]].ids for place in share]
        on_states = completion_states(language_model, prompts, completions, shift, coefficient)
        with off():
            off_states = completion_states(language_model, prompts, completions)
        return token_divergences(language_model, on_states, off_states)

    kl = dict(zip(said, over_rows(len(said), divergences), strict=True))
    return [tuple(kl[row].tolist()) if row in kl else () for row in range(len(paths))]
