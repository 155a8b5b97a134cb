"""The activation methods on models: extracted, applied, kept on disk, dosed."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from heal.config import SteerConfig
from heal.decoding import decode
from heal.dose.calibrate import Goal, calibrate, path_divergences
from heal.errors import RoundError, UserError
from heal.models.language_model import LanguageModel
from heal.scoring import completion_states
from heal.steering.extract import extract
from heal.steering.methods import METHODS
from heal.steering.settings import method_settings
from heal.steering.sites import WRITERS
from heal.steering.vector import SteeringVector
from heal.trait import Trait
from tests import tiny as tiny_models
from tests.cases import case
from tests.tiny import HIDDEN, load, prompts

TEXTS = [f"Tell me about {thing}." for thing in ("elks", "the sea", "tea", "the law", "x", "maps")]
DOSES = [0.4, -0.7, 0.9]
NAMES = list(METHODS)
NEEDS_LINEARS = [name for name, method in METHODS.items() if method.basis != "none"]


def settings(name: str) -> dict:
    """A method's settings, for as few pairs as there are."""
    few = {"clusters": 2} if "clusters" in METHODS[name].settings else {}
    return method_settings(SteerConfig(method=name, **few))


_extracted: dict[tuple[str, str], SteeringVector] = {}


def fitting(language_model: LanguageModel) -> list[str]:
    """The methods that the model has Linears for."""
    return NAMES if hasattr(language_model.blocks[0], "mlp") else [n for n in NAMES if n not in NEEDS_LINEARS]


def steering(language_model: LanguageModel, name: str) -> SteeringVector:
    """A vector of a model by a method; extracted once."""
    key = language_model.name, name
    if key not in _extracted:
        _extracted[key] = vector_of(language_model, tiny_models.trait(), name)
    return _extracted[key]


def vector_of(language_model: LanguageModel, trait: Trait, name: str) -> SteeringVector:
    return extract(language_model, trait, TEXTS, name, [1, 2], settings=settings(name))


def logits(language_model: LanguageModel, ids_BT: Tensor) -> Tensor:
    with torch.no_grad():
        return language_model.model(input_ids=ids_BT).logits


def hook_count(language_model: LanguageModel) -> int:
    return sum(len(module._forward_hooks) for module in language_model.model.modules())


# Applying


def test_no_dose_is_the_model_itself_bit_for_bit_unless_the_method_always_shifts(
    architectures: dict[str, LanguageModel],
):
    for architecture, model in architectures.items():
        ids_BT = torch.tensor([prompts(model)[2]])
        before = logits(model, ids_BT)
        for name in fitting(model):
            with case(architecture, name):
                steering_vector = steering(model, name)
                with steering_vector.applied(model, 0.0):
                    assert torch.equal(logits(model, ids_BT), before) == (METHODS[name].neutral == 0)
                with steering_vector.applied(model, 0.9):
                    assert not torch.allclose(logits(model, ids_BT), before, atol=1e-4)
                assert torch.equal(logits(model, ids_BT), before)


def test_a_dose_for_each_row_equals_separate_runs(architectures: dict[str, LanguageModel]):
    for architecture, model in architectures.items():
        ids = prompts(model)[2]
        for name in fitting(model):
            with case(architecture, name):
                steering_vector = steering(model, name)
                with steering_vector.applied(model, DOSES):
                    together = logits(model, torch.tensor([ids] * len(DOSES)))
                for row, dose in enumerate(DOSES):
                    with steering_vector.applied(model, dose):
                        alone = logits(model, torch.tensor([ids]))[0]
                    torch.testing.assert_close(together[row], alone, rtol=1e-3, atol=1e-3)


def test_rows_that_share_a_prefix_tree_are_shifted_as_each_alone(tiny: LanguageModel):
    for name in NAMES:
        with case(name):
            steering_vector, asked = steering(tiny, name), prompts(tiny)
            said = [[40 + row, 50, 60] for row in range(len(asked))]
            together = completion_states(tiny, asked, said, steering_vector, 0.7)
            for row, (prompt, completion) in enumerate(zip(asked, said, strict=True)):
                alone = completion_states(tiny, [prompt], [completion], steering_vector, 0.7)[0]
                torch.testing.assert_close(together[row], alone, rtol=1e-3, atol=1e-3)


def test_a_shift_while_decoding_is_the_one_while_scoring(tiny: LanguageModel):
    for name in NAMES:
        with case(name):
            steering_vector, asked = steering(tiny, name), prompts(tiny)[:3]
            paths = decode(tiny, asked, 5, steering_vector, DOSES, keep_states=True)
            for prompt, path, dose in zip(asked, paths, DOSES, strict=True):
                assert path.finite
                assert path.states_ND is not None
                scored = completion_states(tiny, [prompt], [path.ids], steering_vector, dose)[0]
                torch.testing.assert_close(path.states_ND, scored, rtol=1e-3, atol=1e-3)


def test_a_half_precision_model_keeps_its_dtype_and_its_identity(tiny_folder: Path, tiny_trait: Trait):
    half = load(tiny_folder, torch.bfloat16)
    ids_BT = torch.tensor([prompts(half)[0]])
    before = logits(half, ids_BT)
    for name in NAMES:
        with case(name):
            steering_vector = vector_of(half, tiny_trait, name)
            with steering_vector.applied(half, 0.7):
                shifted = logits(half, ids_BT)
            assert shifted.dtype == torch.bfloat16
            assert shifted.isfinite().all()
            with steering_vector.applied(half, 0.0):
                assert torch.equal(logits(half, ids_BT), before) == (METHODS[name].neutral == 0)


def test_nothing_is_left_in_the_model_after_an_exception(tiny: LanguageModel):
    for name in NAMES:
        with case(name):
            steering_vector = steering(tiny, name)
            with steering_vector.applied(tiny, 1.0):
                assert hook_count(tiny) == len(steering_vector.states)
            with pytest.raises(KeyboardInterrupt), steering_vector.applied(tiny, 1.0):
                raise KeyboardInterrupt
            assert hook_count(tiny) == 0


def test_beyond_the_largest_coefficient_that_one_counts_for_either_sign(tiny: LanguageModel):
    ids_BT = torch.tensor([prompts(tiny)[1]])

    def at(steering_vector: SteeringVector, c: float) -> Tensor:
        with steering_vector.applied(tiny, c):
            return logits(tiny, ids_BT)

    for name in ["spherical", "angular"]:
        largest = METHODS[name].largest
        assert largest is not None, name
        for sign in (1, -1):
            with case(name, sign):
                vector = steering(tiny, name)
                assert torch.equal(at(vector, sign * (largest + 3)), at(vector, sign * largest))
                assert not torch.equal(at(vector, sign * largest / 2), at(vector, 0.0))
                assert not torch.equal(at(vector, sign * largest / 2), at(vector, -sign * largest / 2))


def test_one_cluster_of_chars_answers_as_mean_diff_does(architectures: dict[str, LanguageModel], tiny_trait: Trait):
    single = settings("chars") | {"clusters": 1}
    for name, model in architectures.items():
        with case(name):
            one = extract(model, tiny_trait, TEXTS, "chars", [1, 2], settings=single)
            ids_BT, shifted = torch.tensor([prompts(model)[1]]), []
            for steering_vector in (one, steering(model, "mean_diff")):
                with steering_vector.applied(model, 2.5):
                    shifted.append(logits(model, ids_BT))
            assert torch.equal(*shifted)


# Extracting


def test_a_vector_says_where_it_acts_and_with_which_settings(tiny: LanguageModel):
    for name in NAMES:
        with case(name):
            steering_vector = steering(tiny, name)
            modules = WRITERS if METHODS[name].site == "writer" else ("",)
            assert list(steering_vector.states) == [(layer, module) for layer in (1, 2) for module in modules]
            assert list(steering_vector.directions) == [1, 2]
            assert all(v_D.shape == (HIDDEN,) for v_D in steering_vector.directions.values())
            assert steering_vector.settings == settings(name)


def test_swapped_personas_turn_the_main_direction_round(tiny: LanguageModel, tiny_trait: Trait):
    for name in NAMES:
        with case(name):
            swapped = replace(tiny_trait, positive=tiny_trait.negative, negative=tiny_trait.positive)
            there, back = steering(tiny, name), vector_of(tiny, swapped, name)
            assert there.cosine(back) == pytest.approx(-1.0, abs=1e-3)
            assert there.cosine(there) == pytest.approx(1.0)


def test_a_method_that_needs_linears_refuses_blocks_without_them_before_it_reads_anything(
    tiny_trait: Trait, tmp_path: Path
):
    opt = tiny_models.load_architecture("opt", tmp_path)
    for name in NEEDS_LINEARS:
        with case(name), pytest.raises(UserError, match=r"block 1 of .*: 'self_attn\.(k_proj|out_proj)'"):
            extract(opt, tiny_trait, TEXTS, name, [1], lambda done, total: pytest.fail("read something"))


def test_activations_that_are_not_finite_stop_the_round(tiny_folder: Path, tiny_trait: Trait):
    broken = load(tiny_folder)
    broken.blocks[1].mlp.down_proj.weight.data[0] = math.inf
    with pytest.raises(RoundError, match=r"block\.2 are not finite"):
        extract(broken, tiny_trait, TEXTS, "mean_diff", [2])


def test_personas_that_leave_no_trace_stop_the_round(tiny: LanguageModel, tiny_trait: Trait):
    same = replace(tiny_trait, positive=tiny_trait.negative)
    with pytest.raises(RoundError, match=r"extract: spherical at block\.1: .* no direction"):
        extract(tiny, same, TEXTS, "spherical", [1])


# On disk


def test_a_vector_saved_and_loaded_again_is_the_same_to_the_byte(tiny: LanguageModel, tmp_path: Path):
    for name in NAMES:
        with case(name):
            steering_vector, path = replace(steering(tiny, name), c_star=1.25), tmp_path / "vector.safetensors"
            path.write_bytes(steering_vector.to_bytes())
            loaded = SteeringVector.load(path)
            assert replace(loaded, states={}) == replace(steering_vector, states={})
            assert {site: state.keys() for site, state in loaded.states.items()} == {
                site: state.keys() for site, state in steering_vector.states.items()
            }
            for site, state in steering_vector.states.items():
                assert all(torch.equal(loaded.states[site][key], tensor) for key, tensor in state.items())
            assert loaded.to_bytes() == path.read_bytes()


def test_the_file_of_mean_diff_holds_what_it_always_held(tiny: LanguageModel, tmp_path: Path):
    steering_vector, path = replace(steering(tiny, "mean_diff"), c_star=1.25), tmp_path / "vector.safetensors"
    path.write_bytes(steering_vector.to_bytes())
    with safe_open(path, framework="pt") as file:
        assert sorted(file.keys()) == ["block.1", "block.2"]
        assert torch.equal(file.get_tensor("block.2"), steering_vector.directions[2])
        metadata = file.metadata()
    assert json.loads(metadata.pop("settings")) == {"normalize": False}
    assert metadata == {
        "method": "mean_diff",
        "model": tiny.name,
        "trait": "warm",
        "layers": "[1, 2]",
        "c_star": "1.25",
    }


def test_a_file_that_is_not_what_it_says_is_refused_in_one_line(tiny: LanguageModel, tmp_path: Path):
    for change, why in [
        ({"method": "telepathy"}, "unknown method 'telepathy'"),
        ({"method": "angular"}, "block.1 does not hold what angular keeps: b2, v"),
        ({"states": {}}, "no directions"),
    ]:
        with case(change, why):
            path = tmp_path / "vector.safetensors"
            path.write_bytes(replace(steering(tiny, "mean_diff"), **change).to_bytes())
            with pytest.raises(UserError) as caught:
                SteeringVector.load(path)
            assert why in str(caught.value)
            assert "\n" not in str(caught.value)


def test_a_vector_for_modules_that_a_model_does_not_have_is_refused(tiny: LanguageModel, tmp_path: Path):
    opt = tiny_models.load_architecture("opt", tmp_path)
    foreign = replace(steering(tiny, "sspace"), model=opt.name)
    with pytest.raises(UserError, match=r"block\.1\.self_attn\.o_proj does not fit"), foreign.applied(opt, 1.0):
        pass
    assert hook_count(opt) == 0


# Dosing


def test_each_method_can_be_dosed_and_then_decodes_finite_logits(tiny: LanguageModel):
    for name in NAMES:
        with case(name):
            steering_vector, asked, method = steering(tiny, name), prompts(tiny)[:3], METHODS[name]
            calibration = calibrate(
                lambda coefficients, v=steering_vector: path_divergences(tiny, v, coefficients, prompts(tiny)[:3], 6),
                None,
                Goal(0.3, 0.05, candidates=3, max_passes=5),
                dosing=steering_vector.dosing,
            )
            assert (calibration.outcome == "tolerance") == (abs(calibration.value - 0.3) <= 0.05)
            assert calibration.c_star <= (method.largest or math.inf)
            at_zero = [divergence.c for divergence in calibration.history if divergence.c == 0]
            assert at_zero == ([] if method.neutral == 0 else [0.0])
            assert math.isfinite(calibration.value)
            said = decode(tiny, asked, 6, steering_vector, [calibration.c_star] * len(asked))
            assert all(path.finite and path.ids for path in said)
