"""Loads a causal language model and its tokenizer, and refuses whatever would go wrong silently."""

from typing import Any

import torch
from huggingface_hub.errors import HfHubHTTPError
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from heal.config import ModelConfig
from heal.errors import UserError
from heal.models.architectures import refuse_unsupported
from heal.models.chat import Chat
from heal.models.embedded import embedded_folder
from heal.models.language_model import LanguageModel
from heal.models.supported import check_supported
from heal.recipe import find_file

_NOT_FOUND = (OSError, HfHubHTTPError)


def load_language_model(
    config: ModelConfig, dtype: torch.dtype, device: torch.device, source: str | None = None
) -> LanguageModel:
    """The model that `config` names, on `device`, in evaluation mode, without gradients.

    Args:
        config: the recipe's model section.
        dtype: dtype of the weights.
        device: where to put it.
        source: folder or hub id to read instead of `config.name`, for example an exported model.

    Raises:
        UserError: not found, not causal, pickled weights, missing or unexpected weights, no chat
            template, no pad token.
    """
    where = source or str(embedded_folder() if config.name == "embedded" else config.folder or config.name)
    tokenizer = _load_tokenizer(config, where)
    model = _load_weights(config, where, dtype, device)
    model.eval()
    model.requires_grad_(False)
    if tokenizer.pad_token_id >= model.get_input_embeddings().num_embeddings:
        raise UserError(
            f"model.name={config.name}: pad token '{tokenizer.pad_token}' has no embedding; set model.pad_token"
        )
    language_model = LanguageModel(
        model=model,
        chat=Chat(tokenizer),
        name=config.name,
        end_ids=_end_ids(model, tokenizer),
        pad_id=tokenizer.pad_token_id,
        config=config,
    )
    check_supported(language_model)
    return language_model


def _load_tokenizer(config: ModelConfig, where: str) -> PreTrainedTokenizerBase:
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            where, revision=config.revision, trust_remote_code=config.trust_remote_code
        )
    except _NOT_FOUND as error:
        raise _not_found(config, error) from error
    except ValueError as error:
        raise UserError(f"model.name={config.name}: its tokenizer cannot be read ({_one_line(error)})") from error
    if config.chat_template is not None:
        path = find_file("model.chat_template", config.chat_template)
        tokenizer.chat_template = path.read_text(encoding="utf-8")
    if not tokenizer.chat_template:
        raise UserError(
            f"model.name={config.name}: its tokenizer has no chat template; use the instruct version of the "
            "model, or set model.chat_template=PATH to a Jinja template"
        )
    if config.pad_token is not None:
        if config.pad_token not in tokenizer.get_vocab():
            raise UserError(f"model.pad_token={config.pad_token}: not in the vocabulary of {config.name}")
        tokenizer.pad_token = config.pad_token
    if tokenizer.pad_token_id is None:
        names = [token for token in tokenizer.get_vocab() if "pad" in token.lower() and token.startswith("<")]
        example = (names or [tokenizer.unk_token or tokenizer.eos_token])[0]
        raise UserError(f"model.name={config.name}: its tokenizer has no pad token; set model.pad_token='{example}'")
    return tokenizer


def _load_weights(config: ModelConfig, where: str, dtype: torch.dtype, device: torch.device):
    common = {"revision": config.revision, "trust_remote_code": config.trust_remote_code}
    try:
        architecture = AutoConfig.from_pretrained(where, **common)
    except _NOT_FOUND as error:
        raise _not_found(config, error) from error
    except ValueError as error:
        raise UserError(f"model.name={config.name}: {_one_line(error)}") from error
    if type(architecture) not in AutoModelForCausalLM._model_mapping and "auto_map" not in architecture.to_dict():
        raise UserError(
            f"model.name={config.name}: '{architecture.model_type}' is not a causal (decoder-only) language model"
        )
    if getattr(architecture, "is_encoder_decoder", False):
        raise UserError(f"model.name={config.name}: an encoder-decoder model; heal requires a decoder-only one")
    refuse_unsupported(config.name, architecture)
    options: dict[str, Any] = common | {
        "attn_implementation": config.attention,
        "use_safetensors": True,
        "dtype": dtype,
    }
    options |= {"ignore_mismatched_sizes": True}  # listed in the report, from which they are refused by name
    if config.load_4bit:
        options |= {"quantization_config": _four_bit(dtype), "device_map": {"": device}}
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        model, report = AutoModelForCausalLM.from_pretrained(where, output_loading_info=True, **options)
    except _NOT_FOUND as error:
        raise _not_found(config, error) from error
    except SafetensorError as error:
        raise UserError(f"model.name={config.name}: a damaged weights file ({_one_line(error)})") from error
    except (ValueError, ImportError) as error:
        hint = "; set model.attention=eager" if config.attention != "eager" and "ttention" in str(error) else ""
        raise UserError(f"model.name={config.name}: {_one_line(error)}{hint}") from error
    finally:
        if bars:
            transformers_logging.enable_progress_bar()
    _check_report(config.name, report)
    return model if config.load_4bit else model.to(device)


def _check_report(name: str, report: dict) -> None:
    """Refuses a checkpoint that does not match its architecture (missing weights would be random)."""
    for what in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        names = sorted(str(item) for item in report.get(what, ()))
        if names:
            shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
            raise UserError(
                f"model.name={name}: {what.replace('_keys', '')} weights ({shown}); the checkpoint does not match "
                "its architecture and would run with random or ignored weights"
            )


def _end_ids(model, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    configured = model.generation_config.eos_token_id
    ids = set(configured if isinstance(configured, list) else [configured]) | {tokenizer.eos_token_id}
    ids.discard(None)
    if not ids:
        raise UserError("the model names no end-of-turn token (eos_token_id in its generation config)")
    return frozenset(int(index) for index in ids)


def _four_bit(dtype: torch.dtype):
    try:
        import bitsandbytes  # noqa: F401
    except ImportError as error:
        raise UserError("model.load_4bit=true requires bitsandbytes; run: pip install 'heal[4bit]'") from error
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )


def _not_found(config: ModelConfig, error: Exception) -> UserError:
    if folder := config.folder:
        pickles = [path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in folder.glob(pattern)]
        if pickles and not list(folder.glob("*.safetensors")):
            return UserError(
                f"model.name={config.name}: weights in pickle form ({pickles[0]}) are refused; "
                "convert them to safetensors"
            )
        return UserError(f"model.name={config.name}: {_one_line(error)}")
    return UserError(
        f"model.name={config.name}: found neither as a folder nor on the hub ({_one_line(error)}); "
        "give 'embedded', a hub id or a folder"
    )


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= 200 else text[:197] + "..."
