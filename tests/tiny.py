"""Tiny models with random weights and a real tokenizer, saved to a folder and loaded as any other model is."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from heal.config import ModelConfig
from heal.models.batching import Batching
from heal.models.language_model import LanguageModel
from heal.models.load import load_language_model
from heal.steering.method import State
from heal.steering.sites import Site
from heal.steering.vector import SteeringVector
from heal.trait import Trait

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL = ("<|pad|>", "<|im_start|>", "<|im_end|>")
BLOCKS = 4
HIDDEN = 32
VOCABULARY = 272  # 3 special tokens, 256 bytes, and ids that no text has
CPU = torch.device("cpu")

TEXT = {
    "vocab_size": VOCABULARY,
    "hidden_size": HIDDEN,
    "intermediate_size": 48,
    "num_hidden_layers": BLOCKS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 1024,
    "initializer_range": 0.3,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
# A window shorter than any prompt.
_SLIDING = {
    "sliding_window": 8,
    "query_pre_attn_scalar": 8,
    "layer_types": ["sliding_attention", "full_attention"] * (BLOCKS // 2),
}


def _llama() -> PreTrainedModel:
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**TEXT))


def _qwen2() -> PreTrainedModel:
    return transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**TEXT))


def _qwen3() -> PreTrainedModel:
    return transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**TEXT))


def _opt() -> PreTrainedModel:
    config = transformers.OPTConfig(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        word_embed_proj_dim=HIDDEN,
        ffn_dim=48,
        num_hidden_layers=BLOCKS,
        num_attention_heads=4,
        max_position_embeddings=1024,
        init_std=0.3,
        tie_word_embeddings=False,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    return transformers.OPTForCausalLM(config)


def _gemma2() -> PreTrainedModel:
    config = transformers.Gemma2Config(**TEXT, **_SLIDING, final_logit_softcapping=5.0)
    return transformers.Gemma2ForCausalLM(config)


def _gemma3_text() -> PreTrainedModel:
    return transformers.Gemma3ForCausalLM(transformers.Gemma3TextConfig(**TEXT, **_SLIDING))


# What a nested Gemma 3's configuration has beside its text part.
GEMMA3_VISION = {
    "vision_config": {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
    },
    "mm_tokens_per_image": 4,
    "boi_token_index": 269,
    "eoi_token_index": 270,
    "image_token_index": 271,
}


def _gemma3_nested() -> PreTrainedModel:
    config = transformers.Gemma3Config(text_config=TEXT | _SLIDING, eos_token_id=2, **GEMMA3_VISION)
    return transformers.Gemma3ForConditionalGeneration(config)


ARCHITECTURES = {
    "llama": _llama,
    "qwen2": _qwen2,
    "qwen3": _qwen3,
    "opt": _opt,  # learned absolute positions
    "gemma2": _gemma2,
    "gemma3_text": _gemma3_text,
    "gemma3_nested": _gemma3_nested,
}


def tokenizer(
    template: str | None = CHATML, merges: Sequence[tuple[str, str]] = (), without: str = ""
) -> PreTrainedTokenizerFast:
    """One token a byte and three special ones; ends a turn with <|im_end|>, pads with <|pad|>.

    Unless told not to, it puts its first token in front of every text, as Llama's does.

    Args:
        template: of a chat.
        merges: pairs of tokens that are one token of their own where they meet, also across words (a space is Ġ).
        without: characters that it does not know: they all become <|pad|>.
    """
    letters = [letter for letter in sorted(pre_tokenizers.ByteLevel.alphabet()) if letter not in without]
    alphabet = [*SPECIAL, *letters, *("".join(pair) for pair in merges)]
    vocabulary = {token: index for index, token in enumerate(alphabet)}
    backend = Tokenizer(models.BPE(vocabulary, list(merges), unk_token="<|pad|>" if without else None))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not merges)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", alphabet.index("<|im_start|>"))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<|pad|>",
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        chat_template=template,
    )


def save(architecture: str, folder: Path) -> Path:
    """Saves a tiny model of `architecture` with its tokenizer; the same weights every time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = ARCHITECTURES[architecture]()
        for name, weight in model.named_parameters():
            if "norm" in name:  # away from the identity, so that greedy answers vary
                weight.data += torch.randn_like(weight)
    model.generation_config.eos_token_id = 2
    model.generation_config.pad_token_id = 0
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def load_architecture(architecture: str, folder: Path) -> LanguageModel:
    """Saves and loads in one go, with the settings that the architecture asks for."""
    settings = {"attention": "eager"} if architecture == "gemma2" else {}
    return load(save(architecture, folder), **settings)


def load(folder: Path, dtype: torch.dtype = torch.float32, spread: bool = False, **settings) -> LanguageModel:
    """The model in `folder`, by the loader that a run uses; `settings` are keys of the model section."""
    return load_language_model(ModelConfig(name=str(folder), **settings), dtype, CPU, spread=spread)


def forgetful(folder: Path) -> LanguageModel:
    """A Llama that says the same whatever it was asked: its next token depends on the last one alone."""
    language_model = load(folder)
    with torch.no_grad():
        for block in language_model.blocks:
            block.get_submodule("self_attn.o_proj").weight.zero_()
    return language_model


def trait() -> Trait:
    """A small valid trait."""
    return Trait(
        name="warm",
        description="Warm, not cold.",
        positive="Be warm.",
        negative="Be cold.",
        generation_prompts=tuple(f"Say {word}." for word in ("one", "two", "three", "four", "five", "six", "7", "8")),
        heldout_prompts=tuple(f"Name {word}." for word in ("a cat", "a dog", "an elk", "a fox")),
        narration=(r"\bI am (a )?warm\b",),
    )


def sized(language_model: LanguageModel, tokens: int = 4096, rows: int = 96) -> LanguageModel:
    """The same model, with smaller passes."""
    return replace(language_model, batching=Batching(rows, tokens))


def prompts(language_model: LanguageModel, count: int = 5) -> list[list[int]]:
    """Prompts of `count` different lengths."""
    return [language_model.chat.ids("", "hungry elk and fox " * index + "?!.,;"[index]) for index in range(count)]


def lean(language_model: LanguageModel, text: str, nats: float, deaf: bool = False) -> None:
    """Adds `nats` to the logit of every character of `text`, wherever it stands; a deaf model hears nothing else."""
    head = language_model.model.get_output_embeddings()
    if deaf:
        torch.nn.init.zeros_(head.weight)
    head.bias = torch.nn.Parameter(torch.zeros(head.weight.shape[0]), requires_grad=False)
    head.bias[language_model.chat.plain_ids(text)] = nats


def vector(language_model: LanguageModel, layers: Sequence[int] = (1, 2), norm: float = 1.0) -> SteeringVector:
    """A random steering vector that fits `language_model`, of length `norm` at each of `layers`."""
    width = language_model.model.config.get_text_config().hidden_size
    source = torch.Generator().manual_seed(1)
    drawn = {layer: torch.randn(width, generator=source) for layer in layers}
    directions = {layer: norm * v_D / v_D.norm() for layer, v_D in drawn.items()}
    return SteeringVector(states(directions), "mean_diff", language_model.name, "warm")


def states(directions: dict[int, Tensor]) -> dict[Site, State]:
    """What mean_diff keeps of blocks with these directions."""
    return {Site(layer): {"v": v_D} for layer, v_D in directions.items()}
