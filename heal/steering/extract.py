"""Reads persona activations at the assistant tag and turns them into a steering vector."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from heal.config import SteerConfig
from heal.errors import RoundError
from heal.models.batching import in_parts
from heal.models.language_model import LanguageModel
from heal.models.packing import halves_of_trees
from heal.parallel import over_rows
from heal.progress import Progress, silent
from heal.records import read_jsonl
from heal.steering.method import Method, NoDirection, State
from heal.steering.methods import method_named
from heal.steering.settings import method_settings, settled
from heal.steering.sites import Site, band_gram, bias_of, hook, module_at, sites_of, weight_in_force
from heal.steering.vector import CENTRE, SteeringVector
from heal.trait import Trait

CONTEXTS = Path(__file__).resolve().parent.parent / "data" / "contexts.jsonl"

Activations = dict[Site, Tensor]


def contexts(count: int) -> list[str]:
    """The first `count` of the embedded contexts (kinds alternate, so any prefix is a mix)."""
    return [row["text"] for row in read_jsonl(CONTEXTS)[:count]]


def contexts_of(trait: Trait, count: int) -> list[str]:
    """The first `count` contexts of an extraction: the user's own, or the embedded ones."""
    return list(trait.contexts[:count]) or contexts(count)


def contrast_rows(language_model: LanguageModel, trait: Trait, texts: Sequence[str]) -> list[list[int]]:
    """The prompts of an extraction as token ids: the positive ones, then as many negative ones.

    `texts` under either persona; where the trait has pairs of the user's own, as many of those under the neutral system
    prompt: both answers to a pair's prompt, broken off where they end, or both user messages.
    """
    chat, system, pairs = language_model.chat, language_model.config.system, trait.pairs[: len(texts)]
    if not pairs:
        return [chat.ids(persona, text) for persona in (trait.positive, trait.negative) for text in texts]
    sides = [[(pair.prompt, getattr(pair, side)) for pair in pairs] for side in ("positive", "negative")]
    return [
        chat.ids(system, prompt, prefill=text) if prompt else chat.ids(system, text)
        for side in sides
        for prompt, text in side
    ]


def extract_as(
    settings: SteerConfig, language_model: LanguageModel, trait: Trait, progress: Progress = silent
) -> SteeringVector:
    """The vector that a recipe's steer section asks for; see `extract` and `settled`."""
    method, band = settled(settings)
    return extract(
        language_model,
        trait,
        contexts_of(trait, settings.pairs),
        method,
        language_model.band(band),
        progress,
        method_settings(settings),
    )


def extract(
    language_model: LanguageModel,
    trait: Trait,
    texts: Sequence[str],
    method: str,
    layers: Sequence[int],
    progress: Progress = silent,
    settings: Mapping[str, Any] | None = None,
) -> SteeringVector:
    """A steering vector of the model as it stands (the current student), read at the last prompt token.

    Args:
        language_model: the model.
        trait: whose personas are contrasted.
        texts: contexts, each asked under both personas.
        method: the name of a file of heal/steering/methods.
        layers: blocks in which it acts.
        progress: told (prompts done, prompts).
        settings: of the method, as `method_settings` gives them; None: the recipe's defaults.

    Raises:
        ValueError: no contexts.
        UserError: no such method, or one that does not know this architecture.
        RoundError: the activations are not finite, or do not say where to steer.
    """
    if not texts:
        raise ValueError("extract: no contexts")
    assert not trait.parts, "extract: several traits have a direction each (heal.steering.joint)"
    sites = sites_of(language_model, method_named(method), layers)
    activations = pair_activations(language_model, trait, texts, sites, progress)
    return vector_of(language_model, trait, method, sites, activations, settings)


def vector_of(
    language_model: LanguageModel,
    trait: Trait,
    method: str,
    sites: Sequence[Site],
    activations: tuple[Activations, Activations],
    settings: Mapping[str, Any] | None = None,
) -> SteeringVector:
    """A method fitted to activations that `pair_activations` read at `sites`, and perhaps at others.

    Args:
        language_model: that they were read from, as it stands.
        trait: whose personas were contrasted.
        method: the name of a file of heal/steering/methods.
        sites: where it acts.
        activations: under the positive and the negative persona, by site.
        settings: of the method, as `method_settings` gives them; None: the recipe's defaults.

    Raises:
        UserError: no such method.
        RoundError: the activations are not finite, or do not say where to steer.
    """
    how, (positive, negative) = method_named(method), activations
    given = dict(method_settings(SteerConfig(method=method)) if settings is None else settings)
    bases = _bases(language_model, how, sites)
    states: dict[Site, State] = {}
    for site in sites:
        if not (positive[site].isfinite().all() and negative[site].isfinite().all()):
            raise RoundError(f"extract: the activations at {site} are not finite")
        try:
            states[site] = fit(how, positive[site], negative[site], given, bases.get(site, {}))
        except NoDirection as error:
            raise RoundError(f"extract: {method} at {site}: {error}") from error
    return SteeringVector(states, method, language_model.name, trait.name, settings=given)


def fit(
    method: Method,
    positive_PD: Tensor,
    negative_PD: Tensor,
    settings: Mapping[str, Any],
    basis: Mapping[str, Tensor | None],
) -> State:
    """What a method keeps of one site; with `centre`, fitted to the activations minus the mean of both sets."""
    given = {name: value for name, value in settings.items() if name != CENTRE}
    if not settings.get(CENTRE):
        return method.fit(positive_PD, negative_PD, **given, **basis)
    centre_D = ((positive_PD.double().mean(0) + negative_PD.double().mean(0)) / 2).float()
    state = method.fit(positive_PD.double() - centre_D, negative_PD.double() - centre_D, **given, **basis)
    return state | {CENTRE: centre_D}


def _bases(
    language_model: LanguageModel, method: Method, sites: Sequence[Site]
) -> dict[Site, dict[str, Tensor | None]]:
    """The weights that a method takes its basis from, by site; Gram matrices on a GPU where the model is there."""
    if method.basis == "none":
        return {}
    # Eigenvectors of one of 8,192 rows take one CPU thread minutes; devices of other types may lack float64.
    device = language_model.device if language_model.device.type == "cuda" else torch.device("cpu")
    if method.basis == "band":
        gram_DD = band_gram(language_model, [site.layer for site in sites]).to(device)
        return {site: {"gram_DD": gram_DD, "bias_D": None} for site in sites}
    bases: dict[Site, dict[str, Tensor | None]] = {}
    for site in sites:
        module = module_at(language_model, site)
        weight_OI = weight_in_force(module)
        bases[site] = {"gram_DD": (weight_OI @ weight_OI.T).to(device), "bias_D": bias_of(module)}
    return bases


def pair_activations(
    language_model: LanguageModel,
    trait: Trait,
    texts: Sequence[str],
    sites: Sequence[Site],
    progress: Progress = silent,
) -> tuple[Activations, Activations]:
    """Last-token activations by site, of `contrast_rows`, of the positive and the negative side, each `[P, D]`, CPU."""
    rows = contrast_rows(language_model, trait, texts)
    activations = last_token_activations(language_model, rows, sites, progress)
    count = len(rows) // 2
    return (
        {site: h_BD[:count] for site, h_BD in activations.items()},
        {site: h_BD[count:] for site, h_BD in activations.items()},
    )


class _Stop(Exception):
    """Leaves the forward pass after the last site that is needed."""


@torch.no_grad()
def last_token_activations(
    language_model: LanguageModel, rows: Sequence[Sequence[int]], sites: Sequence[Site], progress: Progress = silent
) -> Activations:
    """What comes out of `sites` at each row's last token, `[B, D]`, on the CPU; several processes share the rows.

    A pass stops after the last of them, unless other processes need this one's part of the blocks after it.
    """
    by_row = over_rows(
        len(rows),
        lambda share: _last_tokens(
            language_model,
            [rows[row] for row in share],
            sites,
            lambda done, _: progress(done * len(rows) // len(share), len(rows)),
        ),
    )
    return {site: torch.stack([row[place] for row in by_row]) for place, site in enumerate(sites)}


def _last_tokens(
    language_model: LanguageModel, rows: Sequence[Sequence[int]], sites: Sequence[Site], progress: Progress
) -> list[list[Tensor]]:
    """By row and site, `[D]`."""
    read_out: dict[Site, list[Tensor]] = {site: [torch.empty(0)] * len(rows) for site in sites}
    batching, done = language_model.batching, 0

    def read(trees: Sequence[Sequence[int]]) -> None:
        nonlocal done
        packed = language_model.pack(rows, trees)
        members = [row for tree in trees for row in tree]
        last_B = torch.stack([nodes[-1] for nodes in packed.nodes])
        waiting = set(sites)

        def reader(site: Site) -> Callable[[Tensor], None]:
            def keep(h_BND: Tensor) -> None:
                for row, h_D in zip(members, h_BND.flatten(0, 1)[last_B].cpu(), strict=True):
                    read_out[site][row] = h_D
                waiting.discard(site)
                if not waiting and language_model.spread is None:
                    raise _Stop

            return keep

        with ExitStack() as stack:
            for site in sites:
                stack.callback(hook(language_model, site, reader(site)).remove)
            with suppress(_Stop):
                language_model.hidden_states(packed)
        done += len(members)
        progress(done, len(rows))

    shrink = partial(batching.shrink_tokens, batching.tokens)
    for trees in language_model.plan(rows, batching.tokens):
        in_parts(trees, read, shrink, halves_of_trees)
    return [[read_out[site][row] for site in sites] for row in range(len(rows))]
