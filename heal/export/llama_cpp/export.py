"""A student for llama.cpp, merged into one file or as an adapter, or a steering vector; read again and compared."""

import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch

from heal.config import ModelConfig
from heal.export.adapter import peft_files
from heal.export.base import base_of
from heal.export.card import model_card
from heal.export.exportable import Card, Exportable, Facts, Settings
from heal.export.factors import history_factors, truncate
from heal.export.folder import Export, check_place, refuse_distant, replaced, size, write_record
from heal.export.llama_cpp import adapter, control_vector, model
from heal.export.llama_cpp.layout import Layout
from heal.export.llama_cpp.modelfile import MODELFILE, modelfile
from heal.export.merged import merge
from heal.export.vector import check_additive, dose
from heal.export.vector_card import control_vector_card
from heal.export.verify import load_again, verify_adapter, verify_loaded
from heal.models.language_model import LanguageModel
from heal.run.student import Student
from heal.steering.vector import SteeringVector


def export_gguf(student: Student, path: Path, settings: Settings, quant: str = "f16") -> Export:
    """Writes the merged model as model.gguf, with a card and an Ollama Modelfile.

    Loaded again by transformers, which dequantises it, and compared with the student.

    Args:
        student: what to export.
        path: the folder; an earlier export there is replaced once the new one is verified.
        settings: how; rank and dtype say nothing of it.
        quant: type of the weights, one of `TYPES`.

    Raises:
        UserError: nothing to export, a family or tokenizer that cannot be written.
        ExportError: the export differs from the student; nothing is left on disk.
    """
    return write_gguf(student, path, partial(model_card, student), settings, quant, student.rounds)


def write_gguf(
    student: Exportable, path: Path, card: Card, settings: Settings, quant: str, rounds: Sequence[int]
) -> Export:
    """The same for any student, with a card of its own; `rounds` are those of the record."""
    check_place(path)
    factors = history_factors(student.accumulator, settings.gate)
    Layout.of(student.model.model)  # refused before anything is loaded
    merged = load_again(student, torch.device("cpu"), dtype=student.model.model.dtype)
    merge(merged, factors, torch.float32)
    with replaced(path) as folder:
        file = folder / model.FILE
        model.write_model(merged, file, quant)
        loaded = model.load_by_transformers(file, merged.model)
        del merged
        found = verify_loaded(student, loaded, settings.gate)
        base = base_of(student.model, student.config, settings.base)
        facts = Facts(base, settings.gate, torch.float32, found, quant=quant)
        refuse_distant(facts, settings.max_kl, student.config.load_4bit)
        (folder / MODELFILE).write_text(modelfile(model.FILE, student.model, student.config), encoding="utf-8")
        (folder / "README.md").write_text(card(facts), encoding="utf-8")
        about = {"quant": quant, "agreement": asdict(found)}
        write_record(folder, format="gguf", rounds=list(rounds), gate=settings.gate, **about)
    return Export(path, facts, size(path))


def export_gguf_adapter(student: Student, path: Path, settings: Settings) -> Export:
    """Writes the update as adapter.gguf, for a base that is a GGUF too, with a card.

    Its factors are read again bit by bit; the KL is that of these factors in peft.

    Raises:
        UserError, ExportError: see `export_gguf`.
    """
    check_place(path)
    factors = history_factors(student.accumulator, settings.gate)
    if settings.rank is not None:
        factors = truncate(factors, settings.rank)
    lost = None if settings.rank is None else factors.lost
    base = base_of(student.model, student.config, settings.base)
    with replaced(path) as folder:
        adapter.write_adapter(factors, student.model.model, folder / adapter.FILE)
        adapter.check_adapter(factors, student.model.model, folder / adapter.FILE)
        with tempfile.TemporaryDirectory() as scratch:
            for name, content in peft_files(factors, base).items():
                Path(scratch, name).write_bytes(content)
            found = verify_adapter(student, Path(scratch), factors, settings.gate)
        facts = Facts(base, settings.gate, torch.float32, found, factors.rank, lost, quant="f32")
        refuse_distant(facts, settings.max_kl, student.config.load_4bit)
        (folder / "README.md").write_text(model_card(student, facts), encoding="utf-8")
        about = {"rank": factors.rank, "lost": lost, "agreement": asdict(found)}
        write_record(folder, format="gguf-adapter", rounds=list(student.rounds), gate=settings.gate, **about)
    return Export(path, facts, size(path))


def export_control_vector(
    vector: SteeringVector,
    language_model: LanguageModel,
    config: ModelConfig,
    path: Path,
    c: float | None = None,
    named: str | None = None,
) -> Path:
    """Writes `c v` of every steered block as control-vector.gguf, with a card, and reads it again.

    Unlike an adapter, it steers any architecture: llama.cpp adds it to the output of the block.

    Args:
        vector: of a method that adds `c v`.
        language_model: its model.
        config: how that was loaded.
        path: the folder; an earlier export there is replaced.
        c: the coefficient; None: the vector's `c_star`.
        named: what others load the base from; None: what the model was loaded from.

    Returns:
        the file.

    Raises:
        UserError: another method, no coefficient, block 0, a vector that does not fit, a `path` that is taken.
        ExportError: what was read is not what was written; nothing is left on disk.
    """
    check_place(path)
    check_additive(vector)
    c = dose(vector, c)
    vector.check_fits(language_model)
    shifts = {layer: torch.tensor(c, dtype=torch.float32) * v_D for layer, v_D in vector.directions.items()}
    base = base_of(language_model, config, named)
    with replaced(path) as folder:
        file = folder / control_vector.FILE
        control_vector.write_control_vector(shifts, language_model.model.config.model_type, file)
        control_vector.check_control_vector(shifts, file)
        card = control_vector_card(vector, language_model, config, base, c)
        (folder / "README.md").write_text(card, encoding="utf-8")
        write_record(folder, format="gguf", source="vector", method=vector.method, trait=vector.trait, c=c)
    return path / control_vector.FILE
