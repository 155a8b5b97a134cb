"""What a checkpoint's files tell before its weights are read, and what is refused because of it."""

import copy
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub.errors import HfHubHTTPError, StrictDataclassError
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM, GenerationMixin, PreTrainedModel
from transformers.configuration_utils import PreTrainedConfig
from transformers.utils import (
    AUDIO_TOKENIZER_NAME,
    CONFIG_NAME,
    IMAGE_PROCESSOR_NAME,
    PROCESSOR_NAME,
    SAFE_WEIGHTS_INDEX_NAME,
    SAFE_WEIGHTS_NAME,
    VIDEO_PROCESSOR_NAME,
    cached_file,
    find_adapter_config_file,
)
from transformers.utils.hub import LEGACY_PROCESSOR_CHAT_TEMPLATE_FILE

from heal.config import ModelConfig
from heal.errors import UserError
from heal.models.embedded import embedded_folder

NOT_FOUND = (OSError, HfHubHTTPError)
_DEQUANTISED = ("fp8", "mxfp4")  # methods whose weights transformers turns back into floating point while it loads them
_LFS_POINTER, _LFS_BYTES = b"version https://git-lfs", 1024
_AUTO = "AutoModelForCausalLM"
_MERGE = "merge it first (PeftModel.merge_and_unload(), then save_pretrained of model and tokenizer)"


@dataclass(frozen=True)
class Checkpoint:
    """What is loaded, and as what.

    Attributes:
        where: its folder or hub id.
        architecture: its config.
        model_class: whose `from_pretrained` loads it: the class that its config names where that is a decoder with a
            head (a multimodal model keeps the module names under which it is served), else AutoModelForCausalLM.
        quantised: the quantised form of its weights, from which they are turned back into floating point while they are
            loaded; None where they are stored in it.
    """

    where: str
    architecture: PreTrainedConfig
    model_class: Any
    quantised: dict[str, Any] | None = None


def location(config: ModelConfig) -> str:
    """The folder or hub id that `model.name` means."""
    return str(embedded_folder() if config.name == "embedded" else config.folder or config.name)


def open_checkpoint(config: ModelConfig, where: str) -> Checkpoint:
    """Reads the config of the checkpoint at `where` and the headers of its weights; no weights.

    Raises:
        UserError: nothing there, an adapter, a file that is missing, damaged or a Git LFS pointer, an architecture that
            transformers does not know or heal cannot run, code of its own, weights in a quantised form.
    """
    _refuse_adapter(config, where)
    if Path(where).is_dir():
        _check_files(config, Path(where))
    raw = _read_config(config, where)
    quantised = _quantised(config, raw)
    try:
        architecture = AutoConfig.from_pretrained(
            where, revision=config.revision, trust_remote_code=config.trust_remote_code
        )
        model_class = _model_class(config, architecture)
    except NOT_FOUND as error:
        raise not_found(config, error) from error
    except (ValueError, ImportError, StrictDataclassError) as error:
        raise UserError(f"model.name={config.name}: {one_line(error)}") from error
    return Checkpoint(where, architecture, model_class, quantised)


def config_file(config: ModelConfig) -> Path:
    """config.json of a model that has been loaded."""
    return Path(str(_find(config, location(config), CONFIG_NAME)))


def processor_files(config: ModelConfig) -> list[Path]:
    """The files beside a multimodal model that say how its images and sounds are prepared, without the tokenizer's.

    A chat template of the processor's own is among them unless `model.chat_template` replaces it.
    """
    names = [PROCESSOR_NAME, IMAGE_PROCESSOR_NAME, VIDEO_PROCESSOR_NAME, AUDIO_TOKENIZER_NAME]
    if config.chat_template is None:
        names.append(LEGACY_PROCESSOR_CHAT_TEMPLATE_FILE)
    found = (_find(config, location(config), name) for name in names)
    return [Path(path) for path in found if path is not None]


def code_of_its_own(config: ModelConfig) -> UserError:
    """The refusal of a checkpoint whose code would have to be run."""
    return UserError(
        f"model.name={config.name}: comes with code of its own (auto_map), which is not run unless asked for; "
        "read it, then set model.trust_remote_code=true"
    )


def not_found(config: ModelConfig, error: Exception) -> UserError:
    """The refusal of a model that is not there, or lacks a file."""
    if folder := config.folder:
        pickles = [path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in folder.glob(pattern)]
        if pickles and not list(folder.glob("*.safetensors")):
            return UserError(
                f"model.name={config.name}: weights in pickle form ({pickles[0]}) are refused; "
                "convert them to safetensors"
            )
        if not (folder / CONFIG_NAME).is_file():
            return UserError(
                f"model.name={config.name}: the folder has no {CONFIG_NAME}; give one that holds a model as "
                "save_pretrained writes it"
            )
        return UserError(f"model.name={config.name}: {one_line(error)}")
    return UserError(
        f"model.name={config.name}: found neither as a folder nor on the hub ({one_line(error)}); "
        "give 'embedded', a hub id or a folder"
    )


def one_line(error: Exception) -> str:
    """What an error of another library says, on one line of at most 200 characters."""
    text = " ".join(str(error).split())
    return text if len(text) <= 200 else text[:197] + "..."


def _find(config: ModelConfig, where: str, name: str) -> str | None:
    """Path of a file of the checkpoint; None where it has no such file."""
    path: str | None = cached_file(
        where,
        name,
        revision=config.revision,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    return path


def _refuse_adapter(config: ModelConfig, where: str) -> None:
    """transformers attaches an adapter that it finds to the weights beside it, or to the base that it names."""
    try:
        path = find_adapter_config_file(where, revision=config.revision)
        if path is None:
            return
        has_model = _find(config, where, CONFIG_NAME) is not None
    except NOT_FOUND as error:
        raise not_found(config, error) from error
    if has_model:
        raise UserError(
            f"model.name={config.name}: an adapter (adapter_config.json) lies beside the weights, and some loaders "
            f"attach it silently; {_MERGE}, or give a copy without adapter_config.json"
        )
    base = _read_object(config, Path(path)).get("base_model_name_or_path")
    raise UserError(f"model.name={config.name}: is an adapter of {base}; give the base, or {_MERGE}")


def _check_files(config: ModelConfig, folder: Path) -> None:
    """Refuses a folder whose files are Git LFS pointers, or whose weights are incomplete."""
    again = "download it again"
    for path in sorted(folder.iterdir()):
        if path.is_file() and path.stat().st_size < _LFS_BYTES and path.read_bytes().startswith(_LFS_POINTER):
            raise UserError(
                f"model.name={config.name}: {path.name} is a Git LFS pointer in place of the file itself; "
                "run git lfs pull in the folder"
            )
    index = folder / SAFE_WEIGHTS_INDEX_NAME
    names = []
    if (folder / SAFE_WEIGHTS_NAME).is_file():
        names = [SAFE_WEIGHTS_NAME]
    elif index.is_file():
        weight_map = _read_object(config, index).get("weight_map")
        if not isinstance(weight_map, dict):
            raise UserError(f"model.name={config.name}: {index.name} has no weight_map; {again}")
        names = sorted(set(weight_map.values()))
        if missing := [name for name in names if not (folder / name).is_file()]:
            raise UserError(
                f"model.name={config.name}: {len(missing)} of the {len(names)} files that {index.name} names are not "
                f"there ({listed(missing)}); download them"
            )
    elif shards := sorted(path.name for path in folder.glob("*-of-*.safetensors")):
        raise UserError(
            f"model.name={config.name}: a model in several files ({listed(shards)}) without {index.name}; download it"
        )
    for name in names:
        try:
            with safe_open(folder / name, framework="pt"):
                pass
        except SafetensorError as error:
            raise UserError(
                f"model.name={config.name}: {name} is a damaged weights file ({one_line(error)}); {again}"
            ) from error


def loading_class(model: PreTrainedModel) -> str:
    """Name of the class of transformers whose `from_pretrained` gives a model of the class of `model` again."""
    own = type(model)
    auto = AutoModelForCausalLM._model_mapping.get(type(model.config), None)
    return own.__name__ if own is not auto and hasattr(transformers, own.__name__) else _AUTO


def listed(names: list[str]) -> str:
    """The first three of `names`, and how many more there are."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _read_config(config: ModelConfig, where: str) -> dict[str, Any]:
    """config.json, of a kind that transformers knows or that comes with code that may be run."""
    try:
        path = cached_file(where, CONFIG_NAME, revision=config.revision)
    except NOT_FOUND as error:
        raise not_found(config, error) from error
    if path is None:
        raise not_found(config, FileNotFoundError(f"no {CONFIG_NAME} there"))
    raw = _read_object(config, Path(path))
    kind = raw.get("model_type")
    if "AutoConfig" in (raw.get("auto_map") or {}) and kind not in CONFIG_MAPPING:
        if not config.trust_remote_code:
            raise code_of_its_own(config)
    elif kind is None:
        raise UserError(f"model.name={config.name}: its {CONFIG_NAME} has no model_type; give a model of transformers")
    elif kind not in CONFIG_MAPPING:
        raise UserError(
            f"model.name={config.name}: its model_type '{kind}' is not known to the installed transformers "
            f"{transformers.__version__}; try a newer one: pip install --upgrade transformers"
        )
    return raw


def _read_object(config: ModelConfig, path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(
            f"model.name={config.name}: {path.name} is not JSON ({one_line(error)}); download it again"
        ) from error
    if not isinstance(content, dict):
        raise UserError(f"model.name={config.name}: {path.name} is not a JSON object; download it again")
    return content


def _quantised(config: ModelConfig, raw: dict[str, Any]) -> dict[str, Any] | None:
    """The quantised form of the weights; None where they are stored in floating point.

    Raises:
        UserError: they cannot be, or are to be loaded in 4 bits.
    """
    stored: dict[str, Any] | None = raw.get("quantization_config") or (raw.get("text_config") or {}).get(
        "quantization_config"
    )
    if not stored:
        return None
    in_bits = stored.get("load_in_4bit") or stored.get("load_in_8bit")
    method = "bitsandbytes" if in_bits else stored.get("quant_method", "a method that its config does not name")
    if config.load_4bit:
        raise UserError(
            f"model.load_4bit=true: the weights of {config.name} are quantised already ({method}); give the "
            "unquantised repository"
        )
    if method not in _DEQUANTISED:
        raise UserError(
            f"model.name={config.name}: its weights are quantised ({method}), and heal trains on floating point or on "
            "its own 4 bits; give the unquantised repository, with model.load_4bit=true if memory requires it"
        )
    return stored


def _model_class(config: ModelConfig, architecture: PreTrainedConfig) -> Any:
    """See `Checkpoint.model_class`."""
    has_code = _AUTO in (getattr(architecture, "auto_map", None) or {})
    if has_code and config.trust_remote_code:
        return AutoModelForCausalLM
    if getattr(architecture, "is_encoder_decoder", False):
        raise UserError(f"model.name={config.name}: an encoder-decoder model; heal requires a decoder-only one")
    known = AutoModelForCausalLM._model_mapping.get(type(architecture), None)
    named = getattr(transformers, (architecture.architectures or [""])[0], None)
    if isinstance(named, type) and named is not known and _decodes(named, architecture):
        return named
    if known is not None:
        return AutoModelForCausalLM
    if has_code:
        raise code_of_its_own(config)
    raise UserError(
        f"model.name={config.name}: '{architecture.model_type}' is not a causal (decoder-only) language model"
    )


def _decodes(named: Any, architecture: PreTrainedConfig) -> bool:
    """Whether `named` is a model class for `architecture` that has a list of decoder blocks and a head."""
    if not (issubclass(named, PreTrainedModel) and issubclass(named, GenerationMixin)):
        return False
    if named.config_class is not type(architecture):
        return False
    with torch.device("meta"):
        empty = named(copy.deepcopy(architecture))
    decoder = empty.get_decoder()
    stacks = (decoder, getattr(decoder, "model", None))  # Llama 4's decoder is a causal model, with the stack inside
    has_blocks = any(isinstance(getattr(stack, "layers", None), nn.ModuleList) for stack in stacks)
    return has_blocks and empty.get_output_embeddings() is not None
