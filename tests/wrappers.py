"""Tiny multimodal models with random weights: a text decoder of tests.tiny beside a vision tower of one block."""

from pathlib import Path

import torch
import transformers
from transformers import PreTrainedModel

from tests import tiny
from tests.tiny import HIDDEN, TEXT

_VISION = {"hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "depth": 1}
_QWEN_VISION = _VISION | {
    "patch_size": 4,
    "out_hidden_size": HIDDEN,
    "num_position_embeddings": 16,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
}
_QWEN_TOKENS = {"image_token_id": 269, "video_token_id": 268, "vision_start_token_id": 270, "vision_end_token_id": 271}


def _qwen3_5() -> PreTrainedModel:
    recurrent = {
        "layer_types": ["linear_attention", "full_attention"] * 2,
        "linear_num_value_heads": 4,
        "linear_num_key_heads": 2,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
        "linear_conv_kernel_dim": 4,
    }
    config = transformers.Qwen3_5Config(text_config=TEXT | recurrent, vision_config=_QWEN_VISION, **_QWEN_TOKENS)
    return transformers.Qwen3_5ForConditionalGeneration(config)


def _mistral3() -> PreTrainedModel:
    vision = {
        "model_type": "pixtral",
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "head_dim": 8,
        "image_size": 28,
        "patch_size": 14,
    }
    text = {"model_type": "mistral"} | TEXT
    config = transformers.Mistral3Config(text_config=text, vision_config=vision, image_token_index=271)
    return transformers.Mistral3ForConditionalGeneration(config)


def _qwen3_vl() -> PreTrainedModel:
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]}
    config = transformers.Qwen3VLConfig(
        text_config=TEXT | {"rope_parameters": rope},
        vision_config=_QWEN_VISION | {"deepstack_visual_indexes": [0]},
        **_QWEN_TOKENS,
    )
    return transformers.Qwen3VLForConditionalGeneration(config)


WRAPPERS = {
    "gemma3": tiny.ARCHITECTURES["gemma3_nested"],
    "qwen3_5": _qwen3_5,
    "mistral3": _mistral3,
    "qwen3_vl": _qwen3_vl,
}


def save(name: str, folder: Path) -> PreTrainedModel:
    """Saves a wrapper with its tokenizer, and returns it; the same weights every time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = WRAPPERS[name]()
    model.generation_config.eos_token_id = 2
    model.generation_config.pad_token_id = 0
    model.save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return model.eval()
