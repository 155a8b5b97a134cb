"""Where methods act, and which weights they take a basis from."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from heal.accumulator import Accumulator
from heal.errors import UserError
from heal.models.language_model import LanguageModel
from heal.steering.extract import extract, last_token_activations
from heal.steering.methods import METHODS
from heal.steering.sites import READERS, WRITERS, Site, band_gram, linears, module_at, sites_of, weight_in_force
from heal.trait import Trait
from tests import tiny as tiny_models
from tests.cases import case
from tests.tiny import BLOCKS, HIDDEN, load, prompts

KNOWN = [name for name in tiny_models.ARCHITECTURES if name != "opt"]
S_SPACE = ["sspace", "sspace_ablate", "sspace_damp_amp", "super_sspace"]
TEXTS = ["Tell me about elks.", "Tell me about tea.", "Tell me about maps."]


@pytest.fixture(params=KNOWN)
def known(request: pytest.FixtureRequest, tmp_path: Path) -> LanguageModel:
    """One tiny model for each architecture whose Linears are known."""
    return tiny_models.load_architecture(request.param, tmp_path)


def healed(model: LanguageModel, merge: bool, folded: bool = True) -> Accumulator:
    """A student with a history (or none yet) and a current round that both change the model."""
    accumulator = Accumulator(model, 2, 4, [0, 1, 2], merge=merge)
    for r in range(2 if folded else 1):
        if r:
            accumulator.fold()
        accumulator.start_round(r)
        source = torch.Generator().manual_seed(r)
        for name, weight in accumulator.trainable().items():
            if "lora_B" in name:
                weight.data = 0.1 * torch.randn(weight.shape, generator=source)
    return accumulator


def test_a_site_s_name_says_all_of_it():
    for site in [Site(3), Site(12, "mlp.down_proj"), Site(0, "self_attn.o_proj")]:
        with case(site):
            assert Site.parse(str(site)) == site


def test_what_names_no_block_is_no_site():
    for name in ["", "block", "block.x", "blocks.1", "layer.1.mlp", "block.-1"]:
        with case(name), pytest.raises(ValueError, match=r"names no block|not enough"):
            Site.parse(name)


def test_the_linears_of_a_block_are_found_with_their_widths_on_the_residual_stream(known: LanguageModel):
    for layer in range(BLOCKS):
        found = linears(known, layer)
        assert sorted(found) == sorted((*WRITERS, *READERS))
        for name, module in found.items():
            weight_OI = weight_in_force(module)
            assert weight_OI.dtype == torch.float64
            assert weight_OI.shape[0 if name in WRITERS else 1] == HIDDEN


def test_the_linears_are_the_same_ones_when_adapters_are_around_them(known: LanguageModel):
    before = {name: weight_in_force(module) for name, module in linears(known, 1).items()}
    accumulator = healed(known, merge=True)
    with accumulator.base():
        for name, module in linears(known, 1).items():
            assert torch.equal(weight_in_force(module), before[name])


def test_the_weight_in_force_is_what_the_student_multiplies_with(tiny_folder: Path):
    for folded in [False, True]:
        with case(folded):
            found = []
            for merge in (True, False):
                model = load(tiny_folder)
                accumulator = healed(model, merge, folded)
                with accumulator.student(), torch.no_grad():
                    module = linears(model, 1)["mlp.down_proj"]
                    x_NI = torch.randn(5, 48, generator=torch.Generator().manual_seed(9))
                    found.append(weight_in_force(module))
                    torch.testing.assert_close(module(x_NI).double(), x_NI.double() @ found[-1].T, atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(*found, atol=1e-6, rtol=0)


def test_a_vector_of_a_student_is_the_same_with_and_without_merged_weights(tiny_folder: Path, tiny_trait: Trait):
    for name in S_SPACE:
        with case(name):
            directions: list[dict[int, Tensor]] = []
            for merge in (True, False):
                model = load(tiny_folder)
                accumulator = healed(model, merge)
                with accumulator.student():
                    directions.append(extract(model, tiny_trait, TEXTS, name, [1, 2]).directions)
            for layer in (1, 2):
                cosine = torch.cosine_similarity(directions[0][layer], directions[1][layer], dim=0)
                assert float(cosine) == pytest.approx(1.0, abs=1e-4)


def test_what_a_wrapped_linear_says_is_shifted_adapters_included(tiny_folder: Path, tiny_trait: Trait):
    for name in S_SPACE:
        with case(name):
            model = load(tiny_folder)
            accumulator = healed(model, merge=False)
            with accumulator.student(), torch.no_grad():
                steering_vector = extract(model, tiny_trait, TEXTS, name, [1])
                ids_BT = torch.tensor([prompts(model)[1]])
                before = model.model(input_ids=ids_BT).logits
                with steering_vector.applied(model, 1.0):
                    assert not torch.allclose(model.model(input_ids=ids_BT).logits, before, atol=1e-3)
                assert torch.equal(model.model(input_ids=ids_BT).logits, before)


def test_the_pooled_gram_matrix_is_that_of_all_writers_and_readers_side_by_side(known: LanguageModel):
    stacked = []
    for layer in (1, 2):
        for name, module in linears(known, layer).items():
            weight_OI = module.weight.double()
            stacked.append(weight_OI if name in WRITERS else weight_OI.T)
    side_by_side = torch.cat(stacked, 1)
    torch.testing.assert_close(band_gram(known, [1, 2]), side_by_side @ side_by_side.T)


def test_writer_activations_are_the_linears_outputs_at_the_last_token(known: LanguageModel):
    sites = sites_of(known, METHODS["sspace"], [2, 0])
    assert sites == [(layer, module) for layer in (0, 2) for module in WRITERS]
    rows = prompts(known)
    found = last_token_activations(known, rows, sites)
    seen: dict[Site, Tensor] = {}
    handles = [
        module_at(known, site).register_forward_hook(lambda module, inputs, y, site=site: seen.update({site: y}))
        for site in sites
    ]
    for row, ids in enumerate(rows):
        with torch.no_grad():
            known.model(input_ids=torch.tensor([ids]))
        for site in sites:
            torch.testing.assert_close(found[site][row], seen[site][0, -1], rtol=1e-3, atol=1e-3)
    for handle in handles:
        handle.remove()


def test_reading_stops_after_the_last_site(tiny: LanguageModel):
    called: list[str] = []
    watched = {"attention": tiny.blocks[1].self_attn, "mlp": tiny.blocks[1].mlp, "next": tiny.blocks[2]}
    handles = [
        module.register_forward_pre_hook(lambda module, inputs, name=name: called.append(name))
        for name, module in watched.items()
    ]
    try:
        last_token_activations(tiny, prompts(tiny)[:1], [Site(1, "self_attn.o_proj")])
        last_token_activations(tiny, prompts(tiny)[:1], [Site(1, "mlp.down_proj"), Site(1, "self_attn.o_proj")])
    finally:
        for handle in handles:
            handle.remove()
    assert called == ["attention", "attention", "mlp"]


def test_a_linear_that_heal_does_not_know_is_named(tiny_folder: Path):
    model = load(tiny_folder)
    model.blocks[1].mlp.router = nn.Linear(HIDDEN, 4)
    with pytest.raises(UserError, match=r"block 1 of .*: 'mlp\.router' is a Linear of which heal does not know"):
        linears(model, 1)
    assert linears(model, 2)


def test_a_linear_that_is_missing_is_named(tiny_folder: Path):
    model = load(tiny_folder)
    model.blocks[1].mlp.down_proj = nn.Identity()
    with pytest.raises(UserError, match=r"block 1 of .*: no Linear named 'mlp\.down_proj'"):
        linears(model, 1)


def test_a_quantised_weight_is_named(tiny_folder: Path):
    model = load(tiny_folder)
    packed = torch.zeros(HIDDEN, 24, dtype=torch.uint8)
    model.blocks[1].self_attn.o_proj.weight = nn.Parameter(packed, requires_grad=False)
    with pytest.raises(UserError, match=r"the weight of 'self_attn\.o_proj' is quantised"):
        linears(model, 1)
