"""A student, or a steering vector, as an ordinary PEFT adapter or model: written, loaded again and compared."""

from functools import partial
from pathlib import Path

import torch

from heal.accumulator import Accumulator
from heal.environment import notices_ignored
from heal.export import vector as vectors
from heal.export.adapter import write_adapter
from heal.export.card import unmeasured_card
from heal.export.exportable import MAX_KL, Settings, Unrecorded
from heal.export.folder import Export
from heal.export.merged import write_merged
from heal.export.vector import VectorExport
from heal.models.language_model import LanguageModel
from heal.steering.vector import SteeringVector
from heal.trait import Trait


def export_adapter(
    student: Accumulator,
    trait: Trait,
    path: str | Path,
    *,
    gate: float = 1.0,
    rank: int | None = None,
    max_kl: float = MAX_KL,
    base: str | None = None,
) -> Export:
    """Writes the folded rounds as one float32 LoRA in PEFT's format, and verifies it in plain peft.

    `peft.PeftModel.from_pretrained(base, path)` then is the student: rank r for each of the rounds, scale 1.

    Args:
        student: with at least one folded round; an unfolded `current` is not exported.
        trait: on whose held-out prompts and personas the two are compared; the README describes it.
        path: the folder; an earlier export there is replaced once the new one is verified.
        gate: `c_history`, by which the whole update is multiplied.
        rank: truncate to this rank by SVD; None: exact.
        max_kl: p95 of the KL from the student, nats per token, above which the export is refused.
        base: what others load the base from, where it was loaded from a folder; None: what it was loaded from.

    Returns:
        `path`; `agreement`, the KL of the export from the student in nats per token (`p50`, `p95`, `max`) and how often
        the likeliest token is the same (`top1`); `rank`; `lost`, the relative Frobenius error of a truncated update;
        `bytes`; `notices`, what should be known of it.

    Raises:
        UserError: no folded round, a rank out of range, a path that holds something else.
        ExportError: the export differs from the student; nothing is left on disk.
    """
    source = Unrecorded(trait, student)
    settings = Settings(gate, rank, max_kl=max_kl, base=base)
    with notices_ignored():
        card = partial(unmeasured_card, source)
        return write_adapter(source, Path(path).expanduser(), card, settings, range(student.rounds))


def export_merged(
    student: Accumulator,
    trait: Trait,
    path: str | Path,
    *,
    gate: float = 1.0,
    dtype: torch.dtype | None = None,
    max_kl: float = MAX_KL,
    base: str | None = None,
) -> Export:
    """Writes base with the folded rounds merged into its weights, as an ordinary model; see `export_adapter`.

    `dtype` is that of the weights; None: the student's. 16 bits round the update away in part; how much of it survives
    is `facts.kept`.
    """
    source = Unrecorded(trait, student)
    settings = Settings(gate, dtype=dtype, max_kl=max_kl, base=base)
    with notices_ignored():
        card = partial(unmeasured_card, source)
        return write_merged(source, Path(path).expanduser(), card, settings, range(student.rounds))


def export_vector(
    model: LanguageModel,
    vector: SteeringVector,
    path: str | Path,
    *,
    c: float | None = None,
    bias: bool = True,
    max_kl: float = MAX_KL,
    base: str | None = None,
) -> VectorExport:
    """Writes a vector of a method that adds `c v` (`mean_diff`, `pca`) at one dose as a PEFT LoRA, and verifies it.

    Args:
        model: the vector's model, without an accumulator.
        vector: whose `c v` is added.
        path: the folder; an earlier export there is replaced once the new one is verified.
        c: the raw coefficient; None: the vector's `c_star`.
        bias: carry the shift as a bias, exactly; False: without one, approximately, for engines that take none.
        max_kl, base: see `export_adapter`.

    Raises:
        UserError: another method, no coefficient or one of 0, a vector or an architecture that does not fit.
        ExportError: the export differs from the steered model; nothing is left on disk.
    """
    with notices_ignored():
        where = Path(path).expanduser()
        return vectors.export_vector(vector, model, model.config, where, c, bias, max_kl=max_kl, named=base)
