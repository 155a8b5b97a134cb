"""The student as an ordinary model: its history merged into the weights of a newly loaded base."""

import shutil
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch

from heal.export.card import model_card
from heal.export.exportable import Card, Exportable
from heal.export.factors import ExportError, Factors, history_factors
from heal.export.folder import Export, check_place, replaced, size, write_record
from heal.export.verify import fingerprints, load_again, verify_merged
from heal.models.checkpoint import processor_files
from heal.models.language_model import LanguageModel
from heal.run.student import Student


def export_merged(student: Student, path: Path, gate: float = 1.0) -> Export:
    """Writes model, tokenizer, chat template, generation config and the base's processor to `path` and verifies them.

    The base is loaded again from its safetensors, in floating point even if the run used 4 bits;
    `W + gate B A` is computed in float32 and cast to the run's dtype. In float32 it says what the student says, up to
    rounding; in 16 bits, or after a 4-bit run (whose student stands on other weights), the KL is measured and reported.

    Args:
        student: what to export.
        path: the folder; an earlier export there is replaced once the new one is verified.
        gate: `c_history`.

    Raises:
        UserError: nothing to export, or `path` is taken by something else.
        ExportError: the export differs from the student; nothing is left on disk.
    """
    return write_merged(student, path, partial(model_card, student, gate), student.rounds, gate)


def write_merged(student: Exportable, path: Path, card: Card, rounds: Sequence[int], gate: float) -> Export:
    """The same for any student, with a card of its own; `rounds` are those of the record."""
    check_place(path)
    factors = history_factors(student.accumulator, gate)
    base = load_again(student, torch.device("cpu"))
    changed = merge(base, factors)
    if not changed:
        raise ExportError(
            f"the update is smaller than the rounding of {base.model.dtype}: the merged model would be the base. "
            "Export the adapter instead."
        )
    digests = fingerprints(base.model)
    base.model.generation_config.eos_token_id = sorted(base.end_ids)  # what closes an answer in the template among them
    with replaced(path) as folder:
        base.model.save_pretrained(folder)
        base.chat.tokenizer.save_pretrained(folder)
        for processor in processor_files(student.config):  # of images and sounds: a server asks for them
            shutil.copyfile(processor, folder / processor.name)
        for weights in folder.glob("*.safetensors"):  # written with permissions for the owner alone
            shutil.copymode(folder / "config.json", weights)
        del base
        found = verify_merged(student, folder, gate, digests)
        (folder / "README.md").write_text(card(None, None, found), encoding="utf-8")
        write_record(folder, format="model", rounds=list(rounds), gate=gate, agreement=asdict(found))
    return Export(path, found, bytes=size(path), four_bit=student.config.load_4bit)


@torch.no_grad()
def merge(base: LanguageModel, factors: Factors) -> int:
    """Adds `B A` to the weights in place; the number of layers whose weights changed."""
    changed = 0
    for name, (a_RI, b_OR) in factors.layers.items():
        weight_OI = base.model.get_submodule(name).weight
        merged_OI = (weight_OI.float() + b_OR @ a_RI).to(weight_OI.dtype)
        changed += not torch.equal(merged_OI, weight_OI)
        weight_OI.copy_(merged_OI)
    return changed
