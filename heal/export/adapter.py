"""The student as an ordinary PEFT LoRA folder: exact by concatenation, or truncated by SVD.

See docs/method.md, Accumulator.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

from torch import Tensor

from heal.accumulator import adapter_files
from heal.config import ModelConfig
from heal.export.card import model_card
from heal.export.exportable import Card, Exportable
from heal.export.factors import history_factors, truncate
from heal.export.folder import Export, check_place, replaced, size, write_record
from heal.export.verify import verify_adapter
from heal.models.embedded import embedded_folder
from heal.run.student import Student


def export_adapter(student: Student, path: Path, gate: float = 1.0, rank: int | None = None) -> Export:
    """Writes a float32 LoRA under the default adapter name to `path` and verifies it in plain peft.

    Alpha equals the rank (scale 1): each round's scale and the gate are inside B.

    Args:
        student: what to export.
        path: the folder; an earlier export there is replaced once the new one is verified.
        gate: `c_history`, by which B is multiplied.
        rank: rank to truncate to by SVD; None: the exact adapter.

    Raises:
        UserError: nothing to export, a rank out of range, or `path` is taken by something else.
        ExportError: the export differs from the student; nothing is left on disk.
    """
    card, among = partial(model_card, student, gate), student.among
    return write_adapter(student, path, card, student.rounds, gate, rank, student.rounds if among is None else among)


def write_adapter(
    student: Exportable,
    path: Path,
    card: Card,
    rounds: Sequence[int],
    gate: float,
    rank: int | None,
    among: Sequence[int] = (),
) -> Export:
    """The same for any student, with a card of its own; `rounds` and `among` are those of the record."""
    check_place(path)
    factors = history_factors(student.accumulator, gate)
    if rank is not None:
        factors = truncate(factors, rank)
    tensors: dict[str, Tensor] = {}
    for name in sorted(factors.layers):
        a_RI, b_OR = factors.layers[name]
        tensors |= {f"base_model.model.{name}.lora_A.weight": a_RI, f"base_model.model.{name}.lora_B.weight": b_OR}
    base = base_reference(student.config)
    files = adapter_files(tensors, factors.rank, factors.rank, sorted(factors.layers), base)
    files["adapter_config.json"] = with_revision(files["adapter_config.json"], student.config.revision)
    lost = None if rank is None else factors.lost
    with replaced(path) as folder:
        for name, content in files.items():
            (folder / name).write_bytes(content)
        found = verify_adapter(student, folder, factors, gate)
        (folder / "README.md").write_text(card(factors.rank, lost, found), encoding="utf-8")
        facts = {"rank": factors.rank, "lost": lost, "agreement": asdict(found)}
        write_record(folder, format="adapter", rounds=list(rounds), among=list(among), gate=gate, **facts)
    return Export(path, found, factors.rank, lost, size(path), student.config.load_4bit)


def base_reference(config: ModelConfig) -> str:
    """Where other programs load the base from: the hub id as given, else the absolute folder."""
    if config.name == "embedded":
        return str(embedded_folder())
    return str(config.folder.resolve()) if config.folder else config.name


def with_revision(content: bytes, revision: str | None) -> bytes:
    """An adapter_config.json with the hub revision of its base; None: the hub's default."""
    return json.dumps(json.loads(content) | {"revision": revision}, indent=2, sort_keys=True).encode()
