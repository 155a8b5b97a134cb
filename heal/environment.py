"""The process that heal runs in: which cores it may use, what other libraries say."""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from logging import ERROR, getLogger

from heal.errors import UserError


def usable_cores() -> int:
    """Physical cores that this process may run on, whatever number of threads a launcher set."""
    import psutil

    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(allowed, psutil.cpu_count(logical=False) or allowed))


_KERNELS = "bitsandbytes"  # its logger says which faster kernels it would download


def deterministic_kernels() -> None:
    """Has torch use only kernels that give the same bits again, for the rest of the process; before CUDA starts.

    An operation that has no such kernel is then torch's error.

    Raises:
        UserError: CUBLAS_WORKSPACE_CONFIG has a value under which cuBLAS does not repeat, or CUDA started without it.
    """
    import torch

    name, repeating = "CUBLAS_WORKSPACE_CONFIG", (":4096:8", ":16:8")
    value = os.environ.get(name)
    if value is None and torch.cuda.is_initialized():
        raise UserError(
            f"compute.deterministic=true: CUDA has started already; set {name}={repeating[0]} before it does"
        )
    if value not in (None, *repeating):
        raise UserError(
            f"compute.deterministic=true: {name}={value} lets cuBLAS differ from run to run; unset it, or set it to "
            + " or ".join(repeating)
        )
    os.environ.setdefault(name, repeating[0])
    torch.use_deterministic_algorithms(True)


def quiet_libraries(downloads: bool = False) -> None:
    """Keeps other libraries' progress bars and notices off the console; our own say what matters.

    Args:
        downloads: leave on the bars, because a model may have to be downloaded.
    """
    if not downloads:
        os.environ.setdefault("TQDM_DISABLE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    _ignore_notices()
    getLogger(_KERNELS).setLevel(ERROR)
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


@contextmanager
def notices_ignored() -> Iterator[None]:
    """Other libraries' notices (deprecations, advice) are not shown inside the context; after it all is as before."""
    logger = getLogger(_KERNELS)
    level = logger.level
    with warnings.catch_warnings():
        _ignore_notices()
        logger.setLevel(ERROR)
        try:
            yield
        finally:
            logger.setLevel(level)


def _ignore_notices() -> None:
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=UserWarning)
    warnings.filterwarnings("ignore", module="tqdm")  # which of its bars a notebook could have
