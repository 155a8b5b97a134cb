"""A model, and what it says."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from heal.api.keywords import Keywords
from heal.config import GenerationConfig
from heal.decoding import GREEDY, Sampling
from heal.errors import RoundError, UserError
from heal.models.batch_sizes import batching_for
from heal.models.language_model import LanguageModel
from heal.models.load import load_language_model
from heal.models.precision import resolve_dtype
from heal.models.supported import record_steps
from heal.options import resolve_device
from heal.responding import respond
from heal.steering.intervention import Intervention

_COMPUTE = tuple(f"compute.{name}" for name in ("decode_batch", "batch_tokens", "train_batch", "head_memory", "graphs"))
_MODEL = Keywords("model", *_COMPUTE, without=("name",))


@_MODEL.documented
def load_model(name: str | Path = "embedded", *, device: str | torch.device = "auto", **keywords: Any) -> LanguageModel:
    """Loads a decoder-only chat model, in evaluation mode and without gradients.

    The neutral `system` prompt stays with the model: whatever answers, generates or measures uses it. Threads are
    torch's own (`torch.set_num_threads`).

    Args:
        name: `embedded` (SmolLM2-135M-Instruct), a hub id or a local folder.
        device: `auto` (the accelerator if there is one), `cpu`, `cuda`, `cuda:1` ...

    Returns:
        the model; `model.blocks` are its decoder blocks, `model.band((0.45, 0.55))` those at a fraction of the depth.

    Raises:
        UserError: not found, not causal, weights in pickle form, no chat template or one that does not keep what is
            said, no pad token; no such device.
    """
    recipe = _MODEL.recipe(load_model, keywords)
    config, compute = recipe.model, recipe.compute
    config.name = str(name)
    where = resolve_device(str(device))
    dtype, _ = resolve_dtype(config.dtype, where)
    model = load_language_model(config, dtype, where)
    for notice in (*model.notices, *(record_steps(model) if compute.graphs else ())):
        warnings.warn(notice, stacklevel=2)
    model.batching = batching_for(
        model, compute.decode_batch, compute.batch_tokens, compute.head_memory * 2**20, compute.train_batch
    )
    return model


def answer(
    model: LanguageModel,
    prompts: str | Sequence[str],
    *,
    system: str | None = None,
    vector: Intervention | None = None,
    c: float | Sequence[float] | None = None,
    tokens: int = 64,
    temperature: float = GREEDY.temperature,
    top_p: float = GenerationConfig.top_p,
    top_k: int = GenerationConfig.top_k,
    seed: int = 0,
) -> list[str]:
    """What the model as it stands says to each prompt, every prompt in a chat of its own.

    Args:
        model: the model; inside `student.base()` it is the original, after `heal` the student.
        prompts: user messages, decoded side by side.
        system: system prompt; None: the model's neutral one; "": none.
        vector: what steers it, if anything: a steering vector, a weight difference.
        c: its raw coefficient, one for all prompts or one for each; None: the vector's calibrated `c_star`.
        tokens: token budget of an answer.
        temperature: of the sampling; 0: greedy.
        top_p: probability mass sampled from.
        top_k: number of most probable tokens sampled from; 0: all.
        seed: of the sampling; an answer depends on it, on its place among the prompts and on its prompt alone.

    Returns:
        the answers as text, without thoughts and special tokens; one that used up its budget simply ends there. Where
        a model that thinks first did not close its thought, the answer is empty, and a warning says so.

    Raises:
        UserError: a prompt that leaves no room in the context, a vector without a dose or of another model.
        RoundError: logits that are not finite.
    """
    texts = [prompts] if isinstance(prompts, str) else list(prompts)
    if not texts:
        return []
    if tokens < 1:
        raise UserError(f"answer(): tokens={tokens}: out of range, must be >= 1")
    chats = [(model.config.system if system is None else system, text) for text in texts]
    longest = max(model.longest_prompt(*chat) for chat in chats)
    if longest + model.thinking + tokens > model.context:
        thought = f", a thought of {model.thinking}" if model.thinking else ""
        raise UserError(
            f"answer(): a prompt of {longest} tokens{thought} and an answer of {tokens} exceed the context of "
            f"{model.name} ({model.context} tokens)"
        )
    responses = respond(
        model,
        chats,
        tokens,
        vector,
        None if vector is None else _coefficients(vector, c, len(chats)),
        sampling=Sampling(temperature, top_p, top_k),
        seeds=[(seed, "answer", index) for index in range(len(chats))] if temperature else None,
    )
    if not all(response.completion.finite for response in responses):
        raise RoundError("answer(): the logits are not finite; use a smaller coefficient")
    if unclosed := sum(response.unclosed for response in responses):
        warnings.warn(
            f"answer(): {unclosed} of {len(texts)} answers are empty: the thought was not closed within "
            f"{model.thinking} tokens; raise model.thinking_tokens",
            stacklevel=2,
        )
    return [model.chat.decode(list(response.completion.ids)).strip() for response in responses]


def coefficient(vector: Intervention, c: float | None) -> float:
    """`c`, or the vector's calibrated one; UserError where there is neither."""
    calibrated: float | None = c if c is not None else getattr(vector, "c_star", None)
    if calibrated is None:
        raise UserError("the vector has no dose: give c, or vector.with_c_star(calibrate(model, vector, trait).c_star)")
    return float(calibrated)


def _coefficients(vector: Intervention, c: float | Sequence[float] | None, count: int) -> list[float]:
    if c is None or isinstance(c, int | float):
        return [coefficient(vector, c)] * count
    if len(c) != count:
        raise UserError(f"answer(): {len(c)} coefficients for {count} prompts; give one for each, or one for all")
    return [float(value) for value in c]
