"""Training towards a persona and its opposite: the difference is exact, and the base is as it was."""

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import pytest
import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor

from heal.accumulator import linear_names
from heal.config import Recipe
from heal.errors import RoundError, UserError
from heal.models.language_model import LanguageModel
from heal.randomness import generator
from heal.recipe import load_recipe
from heal.steering.load import load_intervention
from heal.steering.weights import WeightDifference, linear_at
from heal.studies.weight_difference.adapters import adapted, difference
from heal.studies.weight_difference.answers import Contrast, contrasting_answers
from heal.studies.weight_difference.kinds import KINDS, adapter_config
from heal.studies.weight_difference.train import train_contrast
from tests import machine
from tests import tiny as tiny_models
from tests.cases import case
from tests.closeness import assert_near
from tests.commanded import heal, refused
from tests.students import completions, student
from tests.tiny import load, load_architecture, prompts, trait

pytestmark = pytest.mark.usefixtures("quick_collections")

LAYERS = [1, 2]
LOOSE = ("filter.max_tail_perplexity=1e9", "filter.max_repetition=1", "filter.max_similarity=1", "filter.min_words=0")
CONTRAST = Contrast(completions(8), completions(8, seed=1), 8, 8, 8)


def recipe(*words: str) -> Recipe:
    """A recipe of seconds, under which a random model's completions pass the filter."""
    return load_recipe(["recipe=smoke", "heal.epochs=1", "heal.warmup=0", "heal.learning_rate=0.01", *LOOSE, *words])


@contextmanager
def unchanged(language_model: LanguageModel) -> Iterator[None]:
    """Fails where anything about the model is not, after the context, what it was before."""

    def state() -> dict[str, object]:
        model = language_model.model
        return {
            "classes": {name: type(module).__name__ for name, module in model.named_modules()},
            "ids": {name: id(module) for name, module in model.named_modules()},
            "attributes": {name: sorted(vars(module)) for name, module in model.named_modules()},
            "config": model.config.to_dict(),
            "training": [name for name, module in model.named_modules() if module.training],
            "trainable": [name for name, weight in model.named_parameters() if weight.requires_grad],
            "gradients": [name for name, weight in model.named_parameters() if weight.grad is not None],
            "dtypes": {name: weight.dtype for name, weight in model.state_dict().items()},
        }

    before = state()
    weights = {name: weight.clone() for name, weight in language_model.model.state_dict().items()}
    yield
    assert state() == before
    after = language_model.model.state_dict()
    assert after.keys() == weights.keys()
    assert all(torch.equal(weight, weights[name]) for name, weight in after.items())


def inputs(name: str, width: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(2, 3, width, generator=generator("inputs", name)).to(dtype)


@torch.no_grad()
def planted(language_model: LanguageModel, kind: str, seed: int) -> tuple[dict[str, BaseTunerLayer], dict[str, Tensor]]:
    """An adapter with random weights, as if trained, and what each of its Linears gives for random inputs."""
    config = adapter_config(language_model, kind, recipe().heal, LAYERS)
    with adapted(language_model, config, seed=0) as found:
        for name, weight in found.peft_model.named_parameters():
            if weight.requires_grad:
                weight += 0.05 * torch.randn(weight.shape, generator=generator("planted", seed, name))
        dtype = language_model.model.dtype
        outputs = {name: layer(inputs(name, layer.in_features, dtype)) for name, layer in found.layers.items()}
    return found.layers, outputs


@dataclass(frozen=True)
class Pair:
    """Two adapters of one kind on one base: their layers, and what those give for random inputs."""

    base: LanguageModel
    kind: str
    positive: dict[str, BaseTunerLayer]
    negative: dict[str, BaseTunerLayer]
    ours: dict[str, Tensor]
    theirs: dict[str, Tensor]


def pair(base: LanguageModel, kind: str) -> Pair:
    (positive, ours), (negative, theirs) = planted(base, kind, 1), planted(base, kind, 2)
    return Pair(base, kind, positive, negative, ours, theirs)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Pair]:
    """A pair of each kind on bases without biases, with some, and on Gemma 3."""
    made: dict[str, Pair] = {}
    for architecture in ("llama", "qwen2", "gemma3_text"):
        base = load_architecture(architecture, tmp_path_factory.mktemp(architecture))
        for name, weight in base.model.named_parameters():
            if name.endswith(".bias"):
                weight.data = torch.randn(weight.shape, generator=generator(name))
        made |= {f"{kind} on {architecture}": pair(base, kind) for kind in KINDS}
    return made


# The difference


def test_the_difference_is_what_the_linears_give_with_factors_of_lora_alone_and_biases_of_ia3_alone(
    pairs: dict[str, Pair],
):
    for name, both in pairs.items():
        with case(name):
            updates = difference(both.positive, both.negative)
            assert updates.keys() == both.ours.keys()
            for linear, update in updates.items():
                expected_BTO = both.ours[linear] - both.theirs[linear]
                assert expected_BTO.abs().max() > 1e-2
                assert_near(update.of(inputs(linear, update.shape[1])) + both.theirs[linear], both.ours[linear])

    for name, both in pairs.items():
        with case(name):
            updates = difference(both.positive, both.negative)
            assert {len(update.factors) for update in updates.values()} == {2 if both.kind == "lora" else 1}
            changed = {linear for linear, update in updates.items() if update.bias_O is not None}
            biased = {linear for linear in updates if linear_at(both.base, linear).bias is not None}
            assert changed == (biased if both.kind == "ia3" else set())
            assert all(tensor.dtype == torch.float32 for update in updates.values() for tensor in update.factors)


def test_the_difference_of_a_bfloat16_model_is_that_of_its_linears_up_to_their_rounding(tiny_folder: Path):
    base = load(tiny_folder, torch.bfloat16)
    for kind in KINDS:
        with case(kind):
            with unchanged(base):
                both = pair(base, kind)
            for name, update in difference(both.positive, both.negative).items():
                expected_BTO = both.ours[name].float() - both.theirs[name].float()
                found_BTO = update.of(inputs(name, update.shape[1], torch.bfloat16))
                scale = float(both.ours[name].float().abs().max())
                torch.testing.assert_close(found_BTO, expected_BTO, rtol=0, atol=0.03 * scale)


def test_base_plus_the_difference_is_the_positive_model_where_the_negative_one_is_base(tiny: LanguageModel):
    for kind in KINDS:
        with case(kind):
            config = adapter_config(tiny, kind, recipe().heal, LAYERS)
            ids_BT = torch.tensor([prompts(tiny)[2]])
            with adapted(tiny, config, seed=0) as untrained, torch.no_grad():
                same = tiny.model(input_ids=ids_BT).logits
            with adapted(tiny, config, seed=0) as trained, torch.no_grad():
                for name, weight in trained.peft_model.named_parameters():
                    if weight.requires_grad:
                        weight += 0.02 * torch.randn(weight.shape, generator=generator("trained", name))
                expected = tiny.model(input_ids=ids_BT).logits
            updates = difference(trained.layers, untrained.layers)
            change = WeightDifference(updates, "weight_difference", tiny.name, "warm")
            with torch.no_grad(), change.applied(tiny, 1.0):
                torch.testing.assert_close(tiny.model(input_ids=ids_BT).logits, expected, rtol=1e-3, atol=5e-3)
            torch.testing.assert_close(tiny.model(input_ids=ids_BT).logits, same, rtol=1e-3, atol=5e-3)
            assert not torch.allclose(same, expected, atol=0.05)


def test_two_adapters_of_one_seed_begin_alike(tiny: LanguageModel):
    for kind in KINDS:
        with case(kind):
            config = adapter_config(tiny, kind, recipe().heal, LAYERS)
            layers = []
            for _ in range(2):
                with adapted(tiny, config, seed=3) as found:
                    pass
                layers.append(found.layers)
            for update in difference(*layers).values():
                assert not update.weight().any()


# The base


def test_training_leaves_the_base_bit_for_bit_as_it_was(tmp_path: Path):
    for kind, architecture, dtype in [
        *((kind, "llama", torch.bfloat16) for kind in KINDS),
        ("pissa", "llama", torch.float32),
        ("dora", "gemma3_text", torch.float32),
        ("pissa", "gemma3_text", torch.bfloat16),
    ]:
        with case(kind, architecture, dtype):
            base = load(tiny_models.save(architecture, tmp_path / f"{kind}-{architecture}-{dtype}"), dtype)
            with unchanged(base):
                trained = train_contrast(base, trait(), recipe(), CONTRAST, kind)
            assert trained.difference.norm > 0
            assert trained.loss_positive != trained.loss_negative
            ids_BT = torch.tensor([prompts(base)[2]])
            with torch.no_grad():
                before = base.model(input_ids=ids_BT).logits
                with trained.difference.applied(base, 0.0):
                    assert torch.equal(base.model(input_ids=ids_BT).logits, before)
                with trained.difference.applied(base, 1.0):
                    assert not torch.equal(base.model(input_ids=ids_BT).logits, before)


def test_a_training_that_fails_leaves_the_base_bit_for_bit_as_it_was(tiny: LanguageModel):
    config = adapter_config(tiny, "pissa", recipe().heal, LAYERS)
    with unchanged(tiny), pytest.raises(RoundError), adapted(tiny, config, seed=0):
        raise RoundError("the loss is not finite")


def test_a_model_that_carries_adapters_is_refused(tiny_folder: Path):
    model, _ = student(tiny_folder)
    config = adapter_config(model, "oft", recipe().heal, LAYERS)
    with pytest.raises(ValueError, match="already carries adapters"), adapted(model, config, seed=0):
        pass


# Training


def test_training_makes_each_side_s_completions_more_probable_than_the_other_s(tiny: LanguageModel):
    once, longer = (
        train_contrast(tiny, trait(), recipe(f"heal.epochs={epochs}"), CONTRAST, "lora") for epochs in (1, 4)
    )
    assert longer.loss_positive < once.loss_positive
    assert longer.loss_negative < once.loss_negative

    @torch.no_grad()
    def nll(rows, c: float) -> float:
        total = 0.0
        with longer.difference.applied(tiny, c):
            for row in rows:
                logits = tiny.model(input_ids=torch.tensor([[*row.prompt_ids, *row.ids]])).logits[0].double()
                logp = logits.log_softmax(-1)[len(row.prompt_ids) - 1 : -1]
                total -= float(logp[range(len(row.ids)), list(row.ids)].sum())
        return total

    for rows, sign in ((CONTRAST.positive, 1), (CONTRAST.negative, -1)):
        assert nll(rows, sign * 0.2) < nll(rows, -sign * 0.2)


def test_both_sides_trained_on_the_same_rows_differ_in_nothing(tiny: LanguageModel):
    same = replace(CONTRAST, negative=CONTRAST.positive)
    trained = train_contrast(tiny, trait(), recipe(), same, "dora")
    assert trained.difference.norm == 0
    assert trained.loss_positive == trained.loss_negative


# What is trained on


def test_the_persona_is_what_completions_are_sampled_under_and_not_in_the_training_rows(tiny: LanguageModel):
    contrast = contrasting_answers(tiny, trait(), recipe(), samples=2)
    turned = replace(trait(), positive=trait().negative, negative=trait().positive)
    swapped = contrasting_answers(tiny, turned, recipe("generation.temperature=0"), samples=1)
    greedy = contrasting_answers(tiny, trait(), recipe("generation.temperature=0"), samples=1)
    assert [row.ids for row in greedy.positive] == [row.ids for row in swapped.negative]
    assert [row.ids for row in greedy.negative] == [row.ids for row in swapped.positive]
    assert [row.ids for row in contrast.positive] != [row.ids for row in contrast.negative]

    asked = recipe()
    contrast = contrasting_answers(tiny, trait(), asked, samples=2)
    for row in (*contrast.positive, *contrast.negative):
        text = tiny.chat.tokenizer.decode(list(row.prompt_ids))
        assert row.prompt_ids == tuple(tiny.chat.ids(asked.model.system, row.prompt))
        assert trait().positive not in text
        assert trait().negative not in text


def test_both_sides_have_as_many_completions_of_each_prompt_and_too_few_are_said(tiny: LanguageModel):
    narrating = replace(trait(), narration=("e", "a"))  # drops some of either
    contrast = contrasting_answers(tiny, narrating, recipe("filter.min_train=2"), samples=4)
    assert min(contrast.kept_positive, contrast.kept_negative) < contrast.made == 16
    counts = [Counter(row.prompt for row in rows) for rows in (contrast.positive, contrast.negative)]
    assert counts[0] == counts[1]
    assert len(contrast.positive) <= min(contrast.kept_positive, contrast.kept_negative)

    with pytest.raises(RoundError, match=r"fewer than filter\.min_train=2"):
        contrasting_answers(tiny, trait(), recipe("filter.min_words=1000"), samples=1)


def test_the_same_seed_samples_and_trains_the_same_bytes_and_another_seed_others(tiny: LanguageModel):
    told: list[tuple[int, int]] = []
    contrast = contrasting_answers(tiny, trait(), recipe(), samples=1)
    assert contrasting_answers(tiny, trait(), recipe(), samples=1) == contrast
    first = train_contrast(tiny, trait(), recipe(), contrast, progress=lambda *at: told.append(at)).difference
    again, other = (train_contrast(tiny, trait(), recipe(f"run.seed={seed}"), contrast).difference for seed in (0, 1))
    assert first.to_bytes() == again.to_bytes()
    assert again.updates.keys() == other.updates.keys()
    assert all(not torch.equal(again.updates[n].weight(), other.updates[n].weight()) for n in again.updates)
    assert told[-1][0] == told[-1][1]


# Kinds


def test_an_architecture_without_the_linears_of_ia3_is_refused(tiny: LanguageModel):
    with pytest.raises(UserError, match="adapter=ia3"):
        KINDS["ia3"](["model.layers.1.attention.dense"], recipe().heal)


def test_a_nested_model_s_linears_are_known_by_their_full_names(tmp_path: Path):
    nested = load_architecture("gemma3_nested", tmp_path)
    with unchanged(nested):
        layers, _ = planted(nested, "lora", 1)
    assert all(name.startswith("model.language_model.layers.") for name in layers)
    assert layers.keys() == {name for layer in LAYERS for name in linear_names(nested, [layer])}


# The command


def test_the_command_writes_a_difference_that_fits_its_model_and_says_where(tiny: LanguageModel, tmp_path: Path):
    (tmp_path / "warm.yaml").write_text(
        json.dumps({name: value for name, value in asdict(trait()).items() if value})
    )  # JSON is YAML
    words = [
        f"trait={tmp_path / 'warm.yaml'}",
        "recipe=smoke",
        f"model.name={tiny.name}",
        "model.dtype=float32",
        "adapter=oft",
        "samples=1",
        f"out={tmp_path / 'x.safetensors'}",
    ]
    done = heal("weight-difference", *words, f"compute.threads={machine.threads()}", *LOOSE, "heal.epochs=1")
    assert done.returncode == 0, done.stderr
    assert str(tmp_path / "x.safetensors") in done.stdout
    assert "kept 4 of 4 as warm" in done.stdout
    loaded = load_intervention(tmp_path / "x.safetensors")
    assert isinstance(loaded, WeightDifference)
    loaded.check_fits(tiny)
    assert (loaded.trait, loaded.settings["adapter"]) == ("warm", "oft")
    assert f"{loaded.norm:.4g}" in done.stdout


def test_a_mistake_in_the_command_s_words_is_one_line_and_its_help_names_them():
    for word, message in [
        ("adapter=lorra", "did you mean 'lora'"),
        ("sampels=3", "did you mean 'samples'"),
        ("samples=0", ">= 1"),
        ("out=care", "out=care: the file's name must end in .safetensors"),
    ]:
        refused(["weight-difference", word], message)

    done = heal("weight-difference", "--help")
    assert done.returncode == 0
    assert all(word in done.stdout for word in ("adapter=lora", "|".join(KINDS), "samples=4", "out="))
