"""Tiny random models of every family that heal is asked for, each with what is special in its family.

Windows and chunks are shorter than any prompt, layer types alternate, experts are routed and shared, scales differ
from 1: what a family has in addition to Llama must matter within the few tokens of a test.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, PreTrainedModel

from tests.tiny import GEMMA3_VISION, HIDDEN, TEXT, tokenizer

WINDOW = 8  # tokens


@dataclass(frozen=True)
class Family:
    """A family's tiny configuration.

    Attributes:
        config: class of transformers' configurations.
        special: what it has beside, or instead of, `tests.tiny.TEXT`; None leaves a key out.
        wrapper: class of the configuration that holds it as `text_config`, beside a small vision model.
        model: class of the model; None: the one that AutoModelForCausalLM takes.
        attention: the kernel that the family asks for.
    """

    config: str
    special: dict[str, Any] = field(default_factory=dict)
    wrapper: str | None = None
    model: str | None = None
    attention: str = "sdpa"

    def build(self) -> PreTrainedModel:
        """The model, with the same weights every time."""
        values = {name: value for name, value in (TEXT | self.special).items() if value is not None}
        if self.wrapper is None:
            config = getattr(transformers, self.config)(**values)
        else:
            text = getattr(transformers, self.config)(**values).to_dict()
            config = getattr(transformers, self.wrapper)(text_config=text, **_VISION[self.wrapper])
        with torch.random.fork_rng():
            torch.manual_seed(0)
            make = AutoModelForCausalLM.from_config if self.model is None else getattr(transformers, self.model)
            model: PreTrainedModel = make(config)
            for name, weight in model.named_parameters():
                if weight.ndim == 1 and ("norm" in name or not weight.any()):  # away from the identity and from 0
                    weight.data += 0.5 * torch.randn_like(weight)
        model.generation_config.eos_token_id = 2
        model.generation_config.pad_token_id = 0
        return model

    def save(self, folder: Path) -> Path:
        """The model and its tokenizer in a folder."""
        self.build().save_pretrained(folder)
        tokenizer().save_pretrained(folder)
        return folder


_ROPE = {"rope_type": "default", "rope_theta": 10000.0}
_ALTERNATING = {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"] * 2}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
_LOCAL_EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
_ROUTED = {
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
    "moe_intermediate_size": 16,
    "n_group": 2,
    "topk_group": 1,
    "first_k_dense_replace": 1,
}
_LATENT = {  # multi-head latent attention
    "num_key_value_heads": 4,
    "q_lora_rank": 8,
    "kv_lora_rank": 8,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "head_dim": None,
}
_DELTA_NET = {
    "layer_types": ["linear_attention", "full_attention"] * 2,
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_conv_kernel_dim": 4,
    "initializer_range": 0.15,  # twice that, and rounding is amplified a hundredfold
}
_QWEN_EXPERTS = {**_EXPERTS, "shared_expert_intermediate_size": 16, "norm_topk_prob": True}
_QWEN_SPARSE = {**_QWEN_EXPERTS, "decoder_sparse_step": 1, "mlp_only_layers": [0]}
_MROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1], "mrope_interleaved": True}
_MAMBA = {
    "mamba_n_heads": 8,
    "mamba_d_head": 8,
    "mamba_d_state": 8,
    "mamba_n_groups": 1,
    "mamba_expand": 2,
    "mamba_chunk_size": 16,
}
_GLOBAL = {"global_head_dim": 16, "num_global_key_value_heads": 1}
_GEMMA = {"query_pre_attn_scalar": 8, **_ALTERNATING}
_VISION: dict[str, dict[str, Any]] = {
    "Mistral3Config": {
        "vision_config": {
            "model_type": "pixtral",
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "head_dim": 8,
            "image_size": 28,
            "patch_size": 14,
        },
        "image_token_index": 271,
        "tie_word_embeddings": False,
    },
    "Gemma3Config": GEMMA3_VISION,
}
_QWEN_VISION = {
    "vision_config": {
        "depth": 1,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_heads": 2,
        "out_hidden_size": HIDDEN,
        "num_position_embeddings": 16,
        "deepstack_visual_indexes": [0],
    },
    "image_token_id": 268,
    "video_token_id": 269,
    "vision_start_token_id": 270,
    "vision_end_token_id": 271,
}
_VISION |= dict.fromkeys(("Qwen3_5Config", "Qwen3_5MoeConfig", "Qwen3VLConfig"), _QWEN_VISION)

FAMILIES: dict[str, Family] = {
    "Llama 2": Family("LlamaConfig", {"num_key_value_heads": 4}),
    "Llama 3": Family(
        "LlamaConfig",
        {
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 500000.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 32,
            },
            "tie_word_embeddings": True,
        },
    ),
    "Llama 4 (text)": Family(
        "Llama4TextConfig",
        {
            **_LOCAL_EXPERTS,
            "num_experts_per_tok": 1,
            "intermediate_size_mlp": 48,
            "interleave_moe_layer_step": 2,
            "attention_chunk_size": WINDOW,
            "no_rope_layers": [1, 0, 1, 0],
            "layer_types": ["chunked_attention", "full_attention"] * 2,
            "floor_scale": 8,
        },
    ),
    "Mistral": Family("MistralConfig", {"sliding_window": WINDOW}),
    "Ministral": Family("MinistralConfig", _ALTERNATING),
    "Ministral 3 (text)": Family("Ministral3Config"),
    "Mistral 3 / Ministral 3": Family(
        "Ministral3Config", wrapper="Mistral3Config", model="Mistral3ForConditionalGeneration"
    ),
    "Mixtral": Family("MixtralConfig", {**_LOCAL_EXPERTS, "sliding_window": WINDOW}),
    "Qwen2": Family("Qwen2Config", {"use_sliding_window": True, **_ALTERNATING}),
    "Qwen2-MoE": Family("Qwen2MoeConfig", _QWEN_SPARSE),
    "Qwen3": Family("Qwen3Config"),
    "Qwen3-MoE": Family("Qwen3MoeConfig", {**_EXPERTS, "decoder_sparse_step": 1, "mlp_only_layers": [0]}),
    "Qwen3-Next": Family("Qwen3NextConfig", {**_QWEN_SPARSE, **_DELTA_NET}),
    "Qwen3.5 (text)": Family("Qwen3_5TextConfig", _DELTA_NET),
    "Qwen3.5": Family(
        "Qwen3_5TextConfig", _DELTA_NET, wrapper="Qwen3_5Config", model="Qwen3_5ForConditionalGeneration"
    ),
    "Qwen3.5-MoE (text)": Family("Qwen3_5MoeTextConfig", {**_QWEN_EXPERTS, **_DELTA_NET}),
    "Qwen3.5-MoE": Family(
        "Qwen3_5MoeTextConfig",
        {**_QWEN_EXPERTS, **_DELTA_NET},
        wrapper="Qwen3_5MoeConfig",
        model="Qwen3_5MoeForConditionalGeneration",
    ),
    "Qwen3-VL": Family(
        "Qwen3VLTextConfig",
        {"rope_parameters": _MROPE},
        wrapper="Qwen3VLConfig",
        model="Qwen3VLForConditionalGeneration",
    ),
    "Gemma": Family("GemmaConfig"),
    "Gemma 2": Family("Gemma2Config", {**_GEMMA, "final_logit_softcapping": 5.0}, attention="eager"),
    "Gemma 3 (text)": Family("Gemma3TextConfig", _GEMMA),
    "Gemma 3": Family("Gemma3TextConfig", _GEMMA, wrapper="Gemma3Config", model="Gemma3ForConditionalGeneration"),
    "Gemma 3n (text)": Family(
        "Gemma3nTextConfig",
        {
            **_ALTERNATING,
            "hidden_size_per_layer_input": 8,
            "vocab_size_per_layer_input": TEXT["vocab_size"],
            "num_kv_shared_layers": 2,
            "altup_num_inputs": 2,
            "laurel_rank": 4,
            "activation_sparsity_pattern": [0.5, 0.5, 0.0, 0.0],
            "intermediate_size": [48] * 4,
        },
    ),
    "Gemma 4 dense (text)": Family(
        "Gemma4TextConfig",
        {**_ALTERNATING, **_GLOBAL, "final_logit_softcapping": 5.0, "hidden_size_per_layer_input": 0},
    ),
    "Gemma 4 E (text)": Family(
        "Gemma4TextConfig",
        {
            **_ALTERNATING,
            **_GLOBAL,
            "hidden_size_per_layer_input": 8,
            "vocab_size_per_layer_input": TEXT["vocab_size"],
            "num_kv_shared_layers": 2,
            "use_double_wide_mlp": True,
        },
    ),
    "Gemma 4 26B-A4B (text)": Family(
        "Gemma4TextConfig",
        {
            **_ALTERNATING,
            **_GLOBAL,
            "hidden_size_per_layer_input": 0,
            "enable_moe_block": True,
            "num_experts": 4,
            "top_k_experts": 2,
            "moe_intermediate_size": 16,
            "attention_k_eq_v": True,
        },
    ),
    "OLMo 2": Family("Olmo2Config"),
    "OLMo 3": Family("Olmo3Config", _ALTERNATING),
    "OLMoE": Family("OlmoeConfig", {"num_experts": 4, "num_experts_per_tok": 2}),
    "OLMo-Hybrid": Family("OlmoHybridConfig", {**_DELTA_NET, "linear_num_key_heads": 4}),
    "SmolLM3": Family("SmolLM3Config", {"no_rope_layers": [1, 1, 0, 1]}),
    "Phi-3 / Phi-4": Family("Phi3Config", {"head_dim": None, "sliding_window": WINDOW}),
    "Granite": Family(
        "GraniteConfig",
        {"logits_scaling": 4.0, "embedding_multiplier": 2.0, "residual_multiplier": 0.5, "attention_multiplier": 0.3},
    ),
    "Granite-MoE-Hybrid": Family(
        "GraniteMoeHybridConfig",
        {
            **_LOCAL_EXPERTS,
            **_MAMBA,
            "layer_types": ["mamba", "attention"] * 2,
            "shared_intermediate_size": 16,
            "logits_scaling": 4.0,
        },
    ),
    "Cohere": Family("CohereConfig", {"logit_scale": 0.25}),
    "Cohere 2": Family("Cohere2Config", {"logit_scale": 0.25, **_ALTERNATING}),
    "GLM-4": Family("Glm4Config", {"rope_parameters": {**_ROPE, "partial_rotary_factor": 0.5}}),
    "GLM-4-MoE": Family("Glm4MoeConfig", {**_ROUTED, "use_qk_norm": True}),
    "GLM-5": Family(
        "GlmMoeDsaConfig", {**_ROUTED, **_LATENT, "index_topk": WINDOW, "index_head_dim": 16, "index_n_heads": 32}
    ),
    "DeepSeek-V3": Family("DeepseekV3Config", {**_ROUTED, **_LATENT}),
    "gpt-oss": Family("GptOssConfig", {**_LOCAL_EXPERTS, **_ALTERNATING}, attention="eager"),
    "LFM2": Family("Lfm2Config", {"layer_types": ["conv", "full_attention"] * 2}),
    "Falcon-H1": Family(
        "FalconH1Config",
        {**_MAMBA, "mamba_d_ssm": 64, "lm_head_multiplier": 0.5, "embedding_multiplier": 2.0, "key_multiplier": 0.5},
    ),
    "Bamba": Family("BambaConfig", {**_MAMBA, "attn_layer_indices": [1, 3]}),
    "Jamba": Family(
        "JambaConfig",
        {
            "num_experts": 4,
            "mamba_d_state": 8,
            "mamba_dt_rank": 4,
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "use_mamba_kernels": False,
        },
    ),
    "Nemotron-H": Family(
        "NemotronHConfig",
        {
            "num_hidden_layers": None,
            "layers_block_type": ["mamba", "attention", "moe", "mamba"],
            "ssm_state_size": 8,
            "chunk_size": 16,
            "mamba_num_heads": 8,
            "mamba_head_dim": 8,
            "n_groups": 1,
            "n_routed_experts": 4,
            "moe_intermediate_size": 16,
            "moe_shared_expert_intermediate_size": 16,
            "use_mamba_kernels": False,
        },
    ),
    "Mamba 2": Family("Mamba2Config", {"state_size": 8, "num_heads": 8, "head_dim": 8, "n_groups": 1}),
    "Apertus": Family("ApertusConfig"),
    "Seed-OSS": Family("SeedOssConfig"),
    "EXAONE 4": Family("Exaone4Config", _ALTERNATING),
    "Helium": Family("HeliumConfig"),
    "ERNIE 4.5": Family("Ernie4_5Config", {"use_bias": True}),
    "MiniMax": Family(
        "MiniMaxConfig", {**_LOCAL_EXPERTS, "layer_types": ["linear_attention", "full_attention"] * 2, "block_size": 8}
    ),
    "Arcee": Family("ArceeConfig"),
}
# Multimodal models, each loaded as its own class.
WRAPPERS = ("Gemma 3", "Qwen3.5", "Mistral 3 / Ministral 3", "Qwen3-VL")
