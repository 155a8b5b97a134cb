"""The inputs of the benchmarks: a model, a vector and completions, made by heal itself before anything is timed."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig, Qwen3Config
from transformers.models.gemma3.configuration_gemma3 import Gemma3TextConfig

from heal.accumulator import Accumulator
from heal.config import ModelConfig, Recipe
from heal.decoding import Sampling, decode
from heal.generation.collect import Completion
from heal.models.batch_sizes import batching_for
from heal.models.language_model import LanguageModel
from heal.models.load import load_language_model
from heal.models.precision import resolve_dtype
from heal.models.supported import check_supported
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
}


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
        return model

    return load


def random_loader(name: str, like: LanguageModel, device: torch.device) -> Callable[[], LanguageModel]:
    """A function that makes a model of one of SHAPES with random weights in bfloat16 and the tokenizer of `like`."""

    def load() -> LanguageModel:
        with torch.device(device):
            model = AutoModelForCausalLM.from_config(SHAPES[name](), dtype=torch.bfloat16)
        model.eval().requires_grad_(False)
        made = LanguageModel(model, copy.copy(like.chat), name, like.end_ids, like.pad_id, like.config)
        check_supported(made)
        made.batching = batching_for(made)
        return made

    return load
