"""The inputs of the benchmarks: a model, a vector and completions, made by heal itself before anything is timed."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedConfig, PreTrainedModel, Qwen3Config
from transformers.initialization import no_init_weights
from transformers.models.gemma3.configuration_gemma3 import Gemma3TextConfig

from heal.accumulator import Accumulator
from heal.config import ModelConfig, Recipe
from heal.decoding import Sampling, decode
from heal.generation.collect import Completion
from heal.memory import memory_told
from heal.models.batch_sizes import batching_for
from heal.models.batching import Batching
from heal.models.language_model import LanguageModel
from heal.models.load import load_language_model
from heal.models.precision import resolve_dtype
from heal.models.supported import check_supported, record_steps
from heal.randomness import generator
from heal.run.student import build_accumulator
from heal.steering.extract import extract_as
from heal.steering.vector import SteeringVector
from heal.trait import Trait

PROMPTS, PER_PROMPT, TOKENS = 6, 3, 40

# Shapes of published models, for random weights: the timings depend on sizes, not on the text.
SHAPES: dict[str, Callable[[], PreTrainedConfig]] = {
    "gemma-3-4b": lambda: Gemma3TextConfig(
        vocab_size=262_208,
        hidden_size=2560,
        intermediate_size=10_240,
        num_hidden_layers=34,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=256,
        sliding_window=1024,
        max_position_embeddings=8192,
    ),
    "qwen3-4b": lambda: Qwen3Config(
        vocab_size=151_936,
        hidden_size=2560,
        intermediate_size=9728,
        num_hidden_layers=36,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=128,
        tie_word_embeddings=True,
        max_position_embeddings=8192,
    ),
    "qwen3-8b": lambda: Qwen3Config(
        vocab_size=151_936,
        hidden_size=4096,
        intermediate_size=12_288,
        num_hidden_layers=36,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=128,
        tie_word_embeddings=False,
        max_position_embeddings=8192,
    ),
    "llama-3.1-8b": lambda: LlamaConfig(
        vocab_size=128_256,
        hidden_size=4096,
        intermediate_size=14_336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=128,
        tie_word_embeddings=False,
        max_position_embeddings=8192,
    ),
}
_NOISE = 2**22 + 15  # random numbers that all weights repeat; odd, so that no two rows of a weight are alike


@dataclass
class Setting:
    """A model with an accumulator, and what to steer, score and train it with.

    Attributes:
        load: makes another model of the same kind, for arms that cannot share one.
        rows: completions that the model sampled.
    """

    recipe: Recipe
    trait: Trait
    load: Callable[[], LanguageModel]
    model: LanguageModel
    accumulator: Accumulator
    vector: SteeringVector
    rows: list[Completion]

    def prompts(self, count: int) -> list[list[int]]:
        """Prompt ids of the trait's generation prompts, repeated where there are too few."""
        texts = self.trait.generation_prompts
        ids = [self.model.chat.ids(self.recipe.model.system, text) for text in texts]
        return [ids[index % len(ids)] for index in range(count)]

    def student(self, rounds: int) -> tuple[LanguageModel, Accumulator]:
        """A freshly loaded model with `rounds` folded rounds of small random updates and a fresh `current`."""
        model = self.load()
        accumulator = build_accumulator(model, self.recipe)
        for r in range(rounds):
            accumulator.start_round(r)
            source = generator("bench", r)
            with torch.no_grad():
                for name, weight in accumulator.trainable().items():
                    if "lora_B" in name:
                        weight.copy_(1e-4 * torch.randn(weight.shape, generator=source))
            accumulator.fold()
        if rounds and accumulator.rounds_merged:
            accumulator.merge()
        accumulator.start_round(rounds)
        return model, accumulator


def setting(recipe: Recipe, trait: Trait, load: Callable[[], LanguageModel]) -> Setting:
    """Loads a model, extracts a vector from a few pairs, and lets it sample completions."""
    model = load()
    accumulator = build_accumulator(model, recipe)
    accumulator.start_round(0)
    with accumulator.student():
        vector = extract_as(replace(recipe.steer, pairs=8), model, trait)
    made = Setting(recipe, trait, load, model, accumulator, vector, [])
    prompts = [prompt for prompt in made.prompts(PROMPTS) for _ in range(PER_PROMPT)]
    seeds = [("bench", index) for index in range(len(prompts))]
    with accumulator.student():
        said = decode(model, prompts, TOKENS, sampling=Sampling(1.0, 0.95, 64), seeds=seeds)
    for index, (prompt, completion) in enumerate(zip(prompts, said, strict=True)):
        text = model.chat.decode(list(completion.ids))
        made.rows.append(
            Completion(index, "", 1.0, tuple(prompt), completion.ids, text, completion.ended, 1.0, 0.0, ())
        )
    return made


def loader(config: ModelConfig, device: torch.device) -> Callable[[], LanguageModel]:
    """A function that loads the model of `config` in the dtype that is fast on `device`."""
    dtype, _ = resolve_dtype(config.dtype, device)

    def load() -> LanguageModel:
        model = load_language_model(config, dtype, device)
        model.batching = batching_for(model)
        record_steps(model)
        return model

    return load


def random_loader(name: str, like: LanguageModel, device: torch.device) -> Callable[[], LanguageModel]:
    """A function that makes a model of one of SHAPES with random weights in bfloat16 and the tokenizer of `like`.

    The first model is tried and the sizes of its passes are measured; the others take over what was found.
    """
    found: list[tuple[Batching, bool, bool, bool]] = []

    def load() -> LanguageModel:
        with memory_told(f"while making random weights of {name}'s shape", "use a device with more memory"):
            model = random_model(SHAPES[name](), device)
        made = LanguageModel(model, copy.copy(like.chat), name, like.end_ids, like.pad_id, like.config)
        if not found:
            check_supported(made)
            record_steps(made)
            found.append((batching_for(made), made.shares, made.pads, made.records))
        batching, made.shares, made.pads, made.records = found[0]
        made.batching = replace(batching)
        return made

    return load


def random_model(config: PreTrainedConfig, device: torch.device) -> PreTrainedModel:
    """A frozen model in bfloat16 on `device`, its matrices filled with normal numbers.

    transformers' own initialisation draws every weight twice, which takes minutes on a CPU. Here a few million numbers
    are drawn, the same for every device, and repeated, each weight continuing where the last one ended.
    """
    with torch.device(device), no_init_weights():
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.tie_weights()
    model.eval().requires_grad_(False)
    drawn_K = torch.randn(_NOISE, generator=generator("bench", "weights"))
    noise_K = (config.initializer_range * drawn_K).to(device, torch.bfloat16)
    start = 0
    for name, weight in model.named_parameters():
        if name.endswith("bias"):
            weight.zero_()
        elif weight.dim() > 1:  # a norm's stays what its module made it
            left_N = weight.view(-1)
            while left_N.numel():
                taken_N = noise_K[start : start + left_N.numel()]
                left_N[: len(taken_N)] = taken_N
                left_N, start = left_N[len(taken_N) :], (start + len(taken_N)) % _NOISE
    return model
