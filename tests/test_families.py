"""Every model family goes through the whole loop or is refused in one line, and the table of support says which."""

from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache

from heal.healing.barrier import position_losses
from heal.healing.divergences import divergence_named
from heal.models.adapted import adapted_linears
from heal.models.architectures import REFUSED
from tests import tiny
from tests.cases import case
from tests.closeness import assert_near
from tests.families import FAMILIES
from tests.support import Support, between_markers, page, short, support

ROOT = Path(__file__).resolve().parent.parent
ROUTERS = {  # what chooses experts, tokens or streams, where it is a Linear
    "Llama 4 (text)": {"router"},
    "Qwen2-MoE": {"shared_expert_gate"},
    "Qwen3-Next": {"shared_expert_gate"},
    "Qwen3.5-MoE (text)": {"shared_expert_gate"},
    "Gemma 3n (text)": {"correction_coefs", "prediction_coefs", "modality_router"},
    "Gemma 4 26B-A4B (text)": {"proj"},
    "GLM-5": {"wq_b", "wk", "weights_proj"},
}

SCALES = {  # what each does to the head's output, by its tiny configuration
    "Granite": lambda x: x / 4,
    "Cohere 2": lambda x: x * 0.25,
    "Falcon-H1": lambda x: x * 0.5,
    "Gemma 4 dense (text)": lambda x: 5 * torch.tanh(x / 5),
}


@pytest.fixture(scope="module")
def rows(quick_collections: None, tmp_path_factory: pytest.TempPathFactory) -> list[Support]:
    """What came of every family; the pass itself asserts that each step is what it promises."""
    made = []
    for name, family in FAMILIES.items():
        with case(name):
            made.append(support(name, family, tmp_path_factory.mktemp("family")))
    return made


def test_every_family_goes_through_the_loop_or_is_refused_in_one_line(rows: list[Support]):
    for row in rows:
        with case(row.family):
            assert row.refused.startswith("model.name=NAME: ") or row.coverage is not None


def test_the_table_of_support_is_what_the_code_says(rows: list[Support]):
    assert (ROOT / "docs/support.md").read_text(encoding="utf-8") == page(rows), "run: make support"
    assert between_markers((ROOT / "README.md").read_text(encoding="utf-8")) == short(rows), "run: make support"


def test_what_is_refused_by_name_is_refused_for_its_true_reason():
    for kind, why in REFUSED.items():
        with case(kind), torch.device("meta"):
            model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind))
            blocks = getattr(model.get_decoder(), "layers", None)
            if "Conv1D" in why:
                linears = [name for name, m in model.get_decoder().named_modules() if isinstance(m, nn.Linear)]
                assert not linears
            elif "named 'layers'" in why:
                assert blocks is None
            elif "cache of its own" in why:
                with torch.device("cpu"):
                    tiny_model = FAMILIES["MiniMax"].build()
                    ids_BT, cache = torch.tensor([[3, 4]]), DynamicCache(config=tiny_model.config)
                    with pytest.raises(ValueError, match="cache of its own"):
                        tiny_model(input_ids=ids_BT, past_key_values=cache, use_cache=True)
            else:
                names = model.get_decoder().forward.__code__.co_varnames
                assert "past_key_values" not in names


def test_no_router_carries_lora(tmp_path: Path):
    for name, routers in ROUTERS.items():
        with case(name):
            family = FAMILIES[name]
            model = tiny.load(family.save(tmp_path / name), attention=family.attention)
            names, coverage = adapted_linears(model, range(len(model.blocks)))
            blocks = list(model.blocks)
            left = {n.rpartition(".")[2] for b in blocks for n, m in b.named_modules() if isinstance(m, nn.Linear)}
            left -= {each.rpartition(".")[2] for each in names}
            assert routers <= left
            assert coverage.choosing >= len(routers)


def test_scaled_logits_have_the_gradients_of_the_model_s_own(tmp_path: Path):
    divergence = divergence_named("kl_rev")
    for name in SCALES:
        with case(name):
            model = tiny.load(FAMILIES[name].save(tmp_path / name), torch.float64)
            h_ND = model.decoder(input_ids=torch.tensor([tiny.prompts(model)[1]])).last_hidden_state[0].detach()
            reference_ND = (h_ND + 0.1 * torch.randn_like(h_ND)).detach()
            target_N = torch.arange(len(h_ND))
            ours = h_ND.clone().requires_grad_()
            (sum(map(torch.sum, position_losses(model, ours, target_N, reference_ND, divergence)))).backward()
            theirs = h_ND.clone().requires_grad_()
            logits_NV = model.model.get_output_embeddings()(theirs)
            logits_NV = SCALES[name](logits_NV)
            nll_N = nn.functional.cross_entropy(logits_NV, target_N, reduction="none")
            kl_N = divergence.per_position(logits_NV, SCALES[name](model.model.get_output_embeddings()(reference_ND)))
            (nll_N.sum() + kl_N.sum()).backward()
            assert_near(ours.grad, theirs.grad)
