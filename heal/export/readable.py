"""Files of tokenizer and config that transformers 4 and 5 read alike.

transformers 5 moves the settings of rotary positions into `rope_parameters`, which 4 does not read: it would compute
with its own defaults, without an error. Each file therefore says both, which 5 reads as it reads its own.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase
from transformers.utils import CONFIG_NAME

Content = dict[str, Any]  # of a JSON file, whose keys are those of its library
_OF_THIS_COMPUTER = ("is_local", "local_files_only", "name_or_path")
_NOT_OF_THE_EXPORT = ("quantization_config", "_name_or_path", "transformers_version", "torch_dtype")
# Layer type of rope_parameters -> the key of transformers 4 for its base frequency.
_ROPES = {"default", "linear", "dynamic", "yarn", "longrope", "llama3"}  # the types that transformers 4 knows
_THETA_BY_LAYER_TYPE = {"full_attention": "rope_theta", "sliding_attention": "rope_local_base_freq"}


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Writes the tokenizer and its chat template."""
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    if content.get("tokenizer_class") == "TokenizersBackend":  # the name that transformers 5 has for it
        content["tokenizer_class"] = "PreTrainedTokenizerFast"
    content["model_input_names"] = list(tokenizer.model_input_names)  # 4 adds token_type_ids to a class without a name
    if isinstance(content.get("extra_special_tokens"), list):
        content["additional_special_tokens"] = content.pop("extra_special_tokens")
    if content.get("add_prefix_space", False) is None:
        del content["add_prefix_space"]
    _write(path, {key: value for key, value in content.items() if key not in _OF_THIS_COMPUTER})


def write_config(folder: Path, base: Content) -> None:
    """Makes the config.json in `folder` one that transformers 4 reads too.

    Args:
        folder: where transformers 5 wrote the model.
        base: the config.json of its base; what its authors said and transformers 5 left out stays, if it is of the same
            type of model.
    """
    path = folder / CONFIG_NAME
    content = json.loads(path.read_text(encoding="utf-8"))
    dtype = content["dtype"]
    if base.get("model_type") == content["model_type"]:
        _keep(content, base)
    for part in _parts(content):
        if "dtype" in part:
            part["dtype"] = part["torch_dtype"] = dtype
        if isinstance(part.get("rope_parameters"), dict):
            for key, value in older_rope(part["rope_parameters"]).items():
                part[key] = value if part.get(key) is None else part[key]
    _write(path, content)


def older_rope(parameters: Content) -> Content:
    """The keys of transformers 4 that say the same as `rope_parameters`; none where it does not know the type."""
    by_layer_type = {name: value for name, value in parameters.items() if isinstance(value, dict)}
    if not all(part.get("rope_type", "default") in _ROPES for part in by_layer_type.values() or (parameters,)):
        return {}
    if not by_layer_type:
        return _flat(parameters)
    found = _flat(by_layer_type.get("full_attention", {}))
    for name, key in _THETA_BY_LAYER_TYPE.items():
        if "rope_theta" in by_layer_type.get(name, {}):
            found[key] = by_layer_type[name]["rope_theta"]
    return found


def _flat(parameters: Content) -> Content:
    beside = ("rope_theta", "partial_rotary_factor", "original_max_position_embeddings")
    found = {key: parameters[key] for key in beside if parameters.get(key) is not None}
    scaling = {key: value for key, value in parameters.items() if key not in beside[:2]}
    plain = scaling.keys() <= {"rope_type"} and scaling.get("rope_type", "default") == "default"
    return found | {"rope_scaling": None if plain else scaling}


def _keep(content: Content, base: Content) -> None:
    """Adds what `base` says and `content` does not, in the parts that both have."""
    for key, value in base.items():
        if key in _NOT_OF_THE_EXPORT:
            continue
        if isinstance(value, dict) and isinstance(content.get(key), dict) and key.endswith("_config"):
            _keep(content[key], value)
        else:
            content.setdefault(key, value)


def _parts(content: Content) -> Iterator[Content]:
    """The config, and those of the models inside it."""
    yield content
    for key, value in content.items():
        if isinstance(value, dict) and key.endswith("_config"):
            yield from _parts(value)


def _write(path: Path, content: Content) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
