"""The student as an ordinary model: its history merged into the weights of a newly loaded base."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch

from heal.export.base import base_of
from heal.export.card import model_card
from heal.export.exportable import AS_TRAINED, Card, Exportable, Facts, Kept, Settings
from heal.export.factors import ExportError, Factors, history_factors
from heal.export.folder import Export, check_place, refuse_distant, replaced, size, write_record
from heal.export.readable import save_tokenizer, write_config
from heal.export.verify import fingerprints, load_again, verify_merged
from heal.models.checkpoint import config_file, processor_files
from heal.models.language_model import LanguageModel
from heal.run.student import Student

SHARD = "5GB"  # of weights in one file; more are several files and an index


def export_merged(student: Student, path: Path, settings: Settings = AS_TRAINED) -> Export:
    """Writes model, tokenizer, chat template, generation config and the base's processor to `path` and verifies them.

    The base is loaded again from its safetensors, in floating point even if the run used 4 bits;
    `W + gate B A` is computed in float32 and cast to the dtype that is asked for. In float32 it says what a float32
    student says, up to rounding; in 16 bits, or after a 4-bit run (whose student stands on other weights), the KL is
    measured and reported. Its config says the same to transformers 4 and 5.

    Args:
        student: what to export.
        path: the folder; an earlier export there is replaced once the new one is verified.
        settings: how; a rank says nothing of a merged model.

    Raises:
        UserError: nothing to export, or `path` is taken by something else.
        ExportError: the export differs from the student; nothing is left on disk.
    """
    return write_merged(student, path, partial(model_card, student), settings, student.rounds)


def write_merged(student: Exportable, path: Path, card: Card, settings: Settings, rounds: Sequence[int]) -> Export:
    """The same for any student, with a card of its own; `rounds` are those of the record."""
    check_place(path)
    gate = settings.gate
    factors = history_factors(student.accumulator, gate)
    loaded = load_again(student, torch.device("cpu"))
    dtype = settings.dtype or loaded.model.dtype
    kept = merge(loaded, factors, dtype)
    if not kept.survives:
        raise ExportError(
            f"the update is smaller than the rounding of {dtype}: the merged model would be the base. "
            "Export the adapter instead, or with dtype=float32."
        )
    digests = fingerprints(loaded.model)
    generation = loaded.model.generation_config
    generation.eos_token_id = sorted(loaded.end_ids)  # what closes an answer in the template among them
    with replaced(path) as folder:
        loaded.model.save_pretrained(folder, max_shard_size=SHARD)
        write_config(folder, json.loads(config_file(student.config).read_text(encoding="utf-8")))
        save_tokenizer(loaded.chat.tokenizer, folder)
        for processor in processor_files(student.config):  # of images and sounds: a server asks for them
            shutil.copyfile(processor, folder / processor.name)
        for weights in folder.glob("*.safetensors"):  # written with permissions for the owner alone
            shutil.copymode(folder / "config.json", weights)
        del loaded
        found = verify_merged(student, folder, gate, dtype, digests)
        base = base_of(student.model, student.config, settings.base)
        facts = Facts(base, gate, dtype, found, kept=None if dtype == torch.float32 else kept)
        refuse_distant(facts, settings.max_kl, student.config.load_4bit)
        (folder / "README.md").write_text(card(facts), encoding="utf-8")
        about = {"dtype": facts.weights, "agreement": asdict(found), "kept": asdict(kept)}
        write_record(folder, format="model", rounds=list(rounds), gate=gate, **about)
    return Export(path, facts, size(path))


@torch.no_grad()
def merge(base: LanguageModel, factors: Factors, dtype: torch.dtype) -> Kept:
    """Adds `B A` to the weights in place and casts the model to `dtype`; what is left of the update then."""
    along = squared = left = 0.0
    for name, (a_RI, b_OR) in factors.layers.items():
        linear = base.model.get_submodule(name)
        update_OI, before_OI = b_OR @ a_RI, linear.weight.float()
        merged_OI = (before_OI + update_OI).to(dtype)
        along += float(((merged_OI.double() - before_OI.to(dtype)) * update_OI).sum())
        left += float((merged_OI.double() - before_OI - update_OI).square().sum())
        squared += float(update_OI.double().square().sum())
        linear.weight.data = merged_OI
    base.model.to(dtype)
    return Kept(along / squared, (left / squared) ** 0.5)
