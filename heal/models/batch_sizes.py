"""Batch sizes for a model and its device: measured on a GPU, by rule on a CPU and where a base is spread.

On a CPU the last bits of a result depend on these sizes, so that a run repeats byte for byte only if a rule sets them;
sizes chosen by timing would differ from run to run.
"""

import time
from collections.abc import Callable

import torch

from heal.models.batching import Batching, fastest, release
from heal.models.cached import CachedRows
from heal.models.language_model import LanguageModel

_PROMPT = 64  # tokens in the cache while decoding is timed
_FIRST_ROWS, _FIRST_TOKENS = 16, 1024
_MOST_ROWS = 2048  # few runs decode as many, and trying more takes seconds
_HEAD_SHARE, _HEAD_MOST = 32, 2**31  # of a GPU's memory, the part that the head may take, and bytes at most


def batching_for(
    language_model: LanguageModel, rows: int = 0, tokens: int = 0, head_bytes: int = 0, completions: int = 0
) -> Batching:
    """The sizes given; where one is 0, rows and tokens are measured on a GPU, the head's bytes are a part of its
    memory, and on a CPU all are the defaults. Of a spread base rows and tokens are the defaults, too: processes that
    time their passes would not make the same ones."""
    device = language_model.device
    if language_model.spread is not None:
        rows, tokens = rows or Batching.rows, tokens or Batching.tokens
    if device.type != "cuda":
        return Batching(
            rows or Batching.rows, tokens or Batching.tokens, head_bytes or Batching.head_bytes, completions
        )
    memory = torch.cuda.get_device_properties(device).total_memory
    sizes = Batching(
        rows or measured_rows(language_model),
        tokens or measured_tokens(language_model),
        head_bytes or max(Batching.head_bytes, min(_HEAD_MOST, memory // _HEAD_SHARE)),
        completions,
    )
    release()  # the largest sizes that were tried are not those of the run
    return sizes


def measured_rows(language_model: LanguageModel) -> int:
    """Number of rows at which decoding twice as many side by side gains less than a tenth."""

    def rate(rows: int) -> float:
        cached, ids_BT = CachedRows(language_model, rows), _ids(language_model, rows, _PROMPT)
        cached.read(ids_BT)

        def step() -> None:
            language_model.logits(cached.read(ids_BT[:, :1]))

        return rows / quickest(step, language_model.device)

    with torch.inference_mode():
        return fastest(rate, _FIRST_ROWS, _MOST_ROWS)


def measured_tokens(language_model: LanguageModel) -> int:
    """Number of tokens at which a teacher-forced pass of twice as many gains less than a tenth."""
    width = min(256, language_model.context)

    def rate(tokens: int) -> float:
        ids_BT = _ids(language_model, max(1, tokens // width), width)
        return ids_BT.numel() / quickest(
            lambda: language_model.decoder(input_ids=ids_BT, use_cache=False), language_model.device
        )

    with torch.inference_mode():
        return fastest(rate, _FIRST_TOKENS)


def _ids(language_model: LanguageModel, rows: int, width: int) -> torch.Tensor:
    return torch.full((rows, width), language_model.pad_id, device=language_model.device)


def quickest(work: Callable[[], object], device: torch.device) -> float:
    """Seconds of the shorter of two runs after a warm-up."""
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - start)
    return min(seconds[1:])
