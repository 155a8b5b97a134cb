"""Loads a causal language model and its tokenizer, and refuses whatever would go wrong silently."""

from typing import Any

import tokenizers
import torch
import transformers
from safetensors import SafetensorError
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from transformers.quantizers import AutoQuantizationConfig
from transformers.utils import logging as transformers_logging

from heal.config import ModelConfig
from heal.errors import UserError
from heal.memory import memory_told
from heal.models.architectures import refuse_unsupported
from heal.models.chat import Chat
from heal.models.checkpoint import (
    NOT_FOUND,
    Checkpoint,
    code_of_its_own,
    listed,
    location,
    not_found,
    one_line,
    open_checkpoint,
)
from heal.models.contract import check_contract
from heal.models.four_bit import keep_one_form, quantisation
from heal.models.kernels import slow_layers
from heal.models.language_model import LanguageModel
from heal.models.spread import Spread
from heal.models.supported import check_supported
from heal.parallel import local_first
from heal.recipe_files import find_file
from heal.yaml_text import read_utf8


def load_language_model(
    config: ModelConfig, dtype: torch.dtype, device: torch.device, source: str | None = None, spread: bool = False
) -> LanguageModel:
    """The model that `config` names, on `device`, in evaluation mode, without gradients.

    Args:
        config: the recipe's model section.
        dtype: dtype of the weights.
        device: where to put it.
        source: folder or hub id to read instead of `config.name`, for example an exported model.
        spread: over all processes, each of which must load it.

    Raises:
        UserError: see `open_checkpoint`; missing or unexpected weights, no chat template or one that breaks the
            contract (`heal.models.contract`), no pad token, tokens without an embedding.
    """
    checkpoint = open_checkpoint(config, source or location(config))
    refuse_unsupported(config.name, checkpoint.architecture)
    tokenizer = _load_tokenizer(config, checkpoint.where)
    chat = Chat(tokenizer)
    notices = [*check_contract(chat, config)]
    notices += _check_tokens(config, chat, checkpoint.architecture.get_text_config().vocab_size)
    if checkpoint.quantised is not None:
        method, held = checkpoint.quantised["quant_method"], str(dtype).removeprefix("torch.")
        notices.append(f"weights stored in {method} are held in {held}, which takes more memory than they do on disk")
    with memory_told(f"while loading model.name={config.name}"):
        place = torch.device("cpu") if spread else device
        model = local_first(lambda: _load_weights(config, checkpoint, dtype, place))
        parts = Spread(model, device) if spread else None
    model.eval()
    model.requires_grad_(False)
    language_model = LanguageModel(
        model=model,
        chat=chat,
        name=config.name,
        end_ids=_end_ids(model, chat),
        pad_id=tokenizer.pad_token_id,
        config=config,
        thinking=config.thinking_tokens if config.thinking else 0,
        notices=(*notices, *slow_layers(model, device)),
        spread=parts,
    )
    check_supported(language_model)
    return language_model


def _load_tokenizer(config: ModelConfig, where: str) -> PreTrainedTokenizerBase:
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            where, revision=config.revision, trust_remote_code=config.trust_remote_code
        )
    except NOT_FOUND as error:
        raise not_found(config, error) from error
    except Exception as error:
        # The tokenizers library raises a bare Exception for a tokenizer.json that it cannot parse.
        if not isinstance(error, ValueError | ImportError) and type(error) is not Exception:
            raise
        if "trust_remote_code" in str(error) and not config.trust_remote_code:
            raise code_of_its_own(config) from error
        raise UserError(
            f"model.name={config.name}: its tokenizer cannot be read ({one_line(error)}); download it again, or "
            f"install the libraries that wrote it (here transformers {transformers.__version__}, tokenizers "
            f"{tokenizers.__version__})"
        ) from error
    if config.chat_template is not None:
        path = find_file("model.chat_template", config.chat_template)
        try:
            tokenizer.chat_template = read_utf8(path)
        except ValueError as error:
            raise UserError(f"model.chat_template={config.chat_template}: not a text in UTF-8 ({error})") from error
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


def _check_tokens(config: ModelConfig, chat: Chat, rows: int) -> list[str]:
    """Refuses a tokenizer that can produce an id beyond the `rows` of the embedding.

    Returns:
        a warning where only tokens that a text would have to spell out lie beyond them.
    """
    tokenizer = chat.tokenizer
    if tokenizer.pad_token_id >= rows:
        raise UserError(
            f"model.name={config.name}: pad token '{tokenizer.pad_token}' has no embedding; set model.pad_token"
        )
    beyond = {index: token for token, index in tokenizer.get_vocab().items() if index >= rows}
    used = set(chat.ids(config.system, "x")) | {tokenizer.eos_token_id} | beyond.keys() - tokenizer.added_tokens_decoder
    if unusable := sorted(used & beyond.keys()):
        raise UserError(
            f"model.name={config.name}: its tokenizer produces tokens without an embedding "
            f"({listed([f'{beyond[index]!r}: id {index}' for index in unusable])}; the model has {rows}); give the "
            "tokenizer that these weights were trained with"
        )
    if not beyond:
        return []
    return [
        f"{len(beyond)} added token{'s' * (len(beyond) > 1)} of the tokenizer without an embedding "
        f"({listed([beyond[index] for index in sorted(beyond)])}): no prompt may contain one"
    ]


def _load_weights(config: ModelConfig, checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device):
    options: dict[str, Any] = {
        "revision": config.revision,
        "trust_remote_code": config.trust_remote_code,
        "attn_implementation": config.attention,
        "use_safetensors": True,
        "dtype": dtype,
    }
    options |= {"ignore_mismatched_sizes": True}  # listed in the report, from which they are refused by name
    if config.load_4bit:
        options |= {"quantization_config": quantisation(dtype), "device_map": {"": device}}
    elif checkpoint.quantised is not None:
        to_floats = AutoQuantizationConfig.from_dict(checkpoint.quantised | {"dequantize": True})
        options |= {"quantization_config": to_floats}
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        model, report = checkpoint.model_class.from_pretrained(checkpoint.where, output_loading_info=True, **options)
    except NOT_FOUND as error:
        raise not_found(config, error) from error
    except SafetensorError as error:
        raise UserError(f"model.name={config.name}: a damaged weights file ({one_line(error)})") from error
    except (ValueError, ImportError) as error:
        hint = "; set model.attention=eager" if config.attention != "eager" and "ttention" in str(error) else ""
        raise UserError(f"model.name={config.name}: {one_line(error)}{hint}") from error
    finally:
        if bars:
            transformers_logging.enable_progress_bar()
    _check_report(config.name, report)
    if not config.load_4bit:
        return model.to(device)
    keep_one_form(model)
    return model


def _check_report(name: str, report: dict) -> None:
    """Refuses a checkpoint that does not match its architecture (missing weights would be random)."""
    for what in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        names = sorted(str(item) for item in report.get(what, ()))
        if names:
            raise UserError(
                f"model.name={name}: {what.replace('_keys', '')} weights ({listed(names)}); the checkpoint does not "
                "match its architecture and would run with random or ignored weights"
            )


def _end_ids(model, chat: Chat) -> frozenset[int]:
    """What the model's files name as ends of a turn, and what closes an answer in its chat template."""
    configured = model.generation_config.eos_token_id
    ids = set(configured if isinstance(configured, list) else [configured]) | {chat.tokenizer.eos_token_id}
    ids = (ids | chat.end_ids) - {None}
    if not ids:
        raise UserError(
            "the model names no end-of-turn token (eos_token_id in its generation config), and its chat template ends "
            "an answer with ordinary text"
        )
    return frozenset(int(index) for index in ids)
