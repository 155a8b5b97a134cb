"""A tokenizer as llama.cpp reads it: byte-level BPE whose way of splitting words llama.cpp has under a name."""

import json
from typing import Any

import gguf
from transformers import PreTrainedTokenizerBase

from heal.errors import UserError

_BYTES = {"type": "ByteLevel", "use_regex": True}
_DIGITS = {"type": "Digits", "individual_digits": True}
_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|"
_REST = "| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
# How words are split before BPE -> its name in llama.cpp.
_SPLITS: list[tuple[list[Any], str]] = [
    ([_BYTES], "gpt-2"),
    ([_DIGITS, _BYTES], "smollm"),
    ([f"{_CONTRACTIONS}\\p{{N}}{_REST}"], "qwen2"),
    ([f"{_CONTRACTIONS}\\p{{N}}{{1,3}}{_REST}"], "llama-bpe"),
]


def add_vocabulary(writer: gguf.GGUFWriter, tokenizer: PreTrainedTokenizerBase, rows: int, end_id: int) -> None:
    """Writes tokens, merges, special tokens and the chat template.

    Args:
        writer: of the file.
        tokenizer: a fast one.
        rows: of the embedding; ids without a token become unused ones.
        end_id: what closes an answer.

    Raises:
        UserError: it is no byte-level BPE, or splits words as llama.cpp does not by name.
    """
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    merges = content["model"].get("merges")
    if content["model"]["type"] != "BPE" or merges is None or content["model"].get("byte_fallback"):
        raise UserError(f"format=gguf: {_REFUSED}")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(split_name(content["pre_tokenizer"]))
    tokens, types = _tokens(tokenizer, rows)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges([pair if isinstance(pair, str) else " ".join(pair) for pair in merges])
    if tokenizer.bos_token_id is not None:
        writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(end_id)
    if tokenizer.pad_token_id is not None:
        writer.add_pad_token_id(tokenizer.pad_token_id)
    begins = tokenizer("x")["input_ids"][0] == tokenizer.bos_token_id is not None
    writer.add_add_bos_token(begins)
    writer.add_chat_template(tokenizer.get_chat_template())


_REFUSED = (
    "this tokenizer is none that heal can write (byte-level BPE whose words are split as in GPT-2, SmolLM, Qwen 2 or "
    "Llama 3); use format=model, which llama.cpp's convert_hf_to_gguf.py converts"
)


def split_name(pre_tokenizer: dict[str, Any] | None) -> str:
    """What llama.cpp calls a way of splitting words, as tokenizer.json describes it; UserError where it has none."""
    parts = (pre_tokenizer or {}).get("pretokenizers", [pre_tokenizer])
    described: list[Any] = []
    for part in parts:
        kind = (part or {}).get("type")
        if kind == "ByteLevel" and not part.get("add_prefix_space"):
            described += [_BYTES] if part.get("use_regex", True) else []
        elif kind == "Digits":
            described.append({"type": kind, "individual_digits": part["individual_digits"]})
        elif kind == "Split" and part["behavior"] == "Isolated" and not part["invert"]:
            described.append(part["pattern"].get("Regex"))
        else:
            raise UserError(f"format=gguf: {_REFUSED}")
    name = next((name for split, name in _SPLITS if split == described), None)
    if name is None:
        raise UserError(f"format=gguf: {_REFUSED}")
    return name


def _tokens(tokenizer: PreTrainedTokenizerBase, rows: int) -> tuple[list[str], list[int]]:
    """The token of every row of the embedding, and its type."""
    by_id = {index: token for token, index in tokenizer.get_vocab().items()}
    added = tokenizer.added_tokens_decoder
    tokens, types = [], []
    for index in range(rows):
        if index not in by_id:
            kind = gguf.TokenType.UNUSED
        elif index in added:
            kind = gguf.TokenType.CONTROL if added[index].special else gguf.TokenType.USER_DEFINED
        else:
            kind = gguf.TokenType.NORMAL
        tokens.append(by_id.get(index, f"[PAD{index}]"))
        types.append(int(kind))
    return tokens, types
