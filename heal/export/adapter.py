"""The student as an ordinary PEFT LoRA folder: exact by concatenation, or truncated by SVD.

See docs/method.md, Accumulator.
"""

from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from heal.accumulator import adapter_files
from heal.export.base import Base, base_of
from heal.export.card import model_card
from heal.export.exportable import AS_TRAINED, Card, Exportable, Facts, Settings
from heal.export.factors import Factors, history_factors, truncate
from heal.export.folder import Export, check_place, refuse_distant, replaced, size, write_record
from heal.export.readable import save_tokenizer
from heal.export.verify import check_tokenizer, verify_adapter
from heal.run.student import Student


def export_adapter(student: Student, path: Path, settings: Settings = AS_TRAINED) -> Export:
    """Writes a float32 LoRA under the default adapter name, with tokenizer and chat template, and verifies it in peft.

    Alpha equals the rank (scale 1): each round's scale and the gate are inside B.

    Args:
        student: what to export.
        path: the folder; an earlier export there is replaced once the new one is verified.
        settings: how; a dtype says nothing of an adapter.

    Raises:
        UserError: nothing to export, a rank out of range, or `path` is taken by something else.
        ExportError: the export differs from the student; nothing is left on disk.
    """
    among = student.rounds if student.among is None else student.among
    return write_adapter(student, path, partial(model_card, student), settings, student.rounds, among)


def write_adapter(
    student: Exportable,
    path: Path,
    card: Card,
    settings: Settings,
    rounds: Sequence[int],
    among: Sequence[int] = (),
) -> Export:
    """The same for any student, with a card of its own; `rounds` and `among` are those of the record."""
    check_place(path)
    factors = history_factors(student.accumulator, settings.gate)
    if settings.rank is not None:
        factors = truncate(factors, settings.rank)
    base = base_of(student.model, student.config, settings.base)
    lost = None if settings.rank is None else factors.lost
    with replaced(path) as folder:
        for name, content in peft_files(factors, base).items():
            (folder / name).write_bytes(content)
        found = verify_adapter(student, folder, factors, settings.gate)
        save_tokenizer(student.model.chat.tokenizer, folder)
        check_tokenizer(student, folder)
        facts = Facts(base, settings.gate, torch.float32, found, factors.rank, lost)
        refuse_distant(facts, settings.max_kl, student.config.load_4bit)
        (folder / "README.md").write_text(card(facts), encoding="utf-8")
        about = {"rank": factors.rank, "lost": lost, "agreement": asdict(found)}
        write_record(folder, format="adapter", rounds=list(rounds), among=list(among), gate=settings.gate, **about)
    return Export(path, facts, size(path))


def peft_files(factors: Factors, base: Base) -> dict[str, bytes]:
    """The two files of the factors as a PEFT adapter of `base`."""
    tensors: dict[str, Tensor] = {}
    for name in sorted(factors.layers):
        a_RI, b_OR = factors.layers[name]
        tensors |= {f"base_model.model.{name}.lora_A.weight": a_RI, f"base_model.model.{name}.lora_B.weight": b_OR}
    rank = factors.rank
    return adapter_files(tensors, rank, rank, sorted(factors.layers), base.reference, base.revision)
