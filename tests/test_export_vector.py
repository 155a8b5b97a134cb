"""A steering vector as a PEFT adapter: in plain peft it is the steering itself, or nearly and it says how nearly."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from heal.config import ModelConfig
from heal.errors import UserError
from heal.evaluation.neutral import NeutralTexts
from heal.export.constant_gate import best_coordinate, constant_gate, judged, least_squares
from heal.export.factors import ExportError
from heal.export.folder import read_record
from heal.export.residual import straight_writer
from heal.export.vector import VectorExport, export_vector, model_section
from heal.export.verify import model_logits
from heal.models.agreement import Agreement
from heal.models.language_model import LanguageModel
from heal.recipe import load_recipe
from heal.run.facts import Facts
from heal.run.folder import RunFolder
from heal.steering.methods import METHODS, mean_diff
from heal.steering.vector import SteeringVector
from tests import tiny as tiny_models
from tests.cases import case
from tests.commanded import heal, refused
from tests.finished import edit_json

CLOSE = 1e-4  # logits
SAME = 1e-7  # nats: what another order of sums changes in float32
CONTEXTS = 2
ADDITIVE = {name for name, method in METHODS.items() if method.apply is mean_diff.apply and method.site == "block"}


def export(vector: SteeringVector, language_model: LanguageModel, path: Path, **settings) -> VectorExport:
    config = ModelConfig(name=language_model.name)
    return export_vector(vector, language_model, config, path, context_count=CONTEXTS, **settings)


def in_peft(language_model: LanguageModel, folder: Path) -> nn.Module:
    """The adapter on a fresh base, loaded with nothing of heal's."""
    return PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(language_model.name), str(folder)).eval()


def distance(vector: SteeringVector, language_model: LanguageModel, c: float, other: nn.Module) -> float:
    """Max |logit difference| of `other` to the steered model, on prompts that the export did not see."""
    rows = tiny_models.prompts(language_model, 3)
    with vector.applied(language_model, c):
        steered = model_logits(language_model.model, rows)
    pairs = zip(model_logits(other, rows), steered, strict=True)
    return max(float((ours - theirs).abs().max()) for ours, theirs in pairs)


def leftovers(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()] if folder.exists() else []


@pytest.fixture(scope="module")
def rank1(tiny: LanguageModel, tmp_path_factory: pytest.TempPathFactory) -> VectorExport:
    path = tmp_path_factory.mktemp("rank1") / "adapter"
    return export(tiny_models.vector(tiny), tiny, path, c=0.5, bias=False, max_kl=1e9)


def test_with_a_bias_the_adapter_in_plain_peft_is_the_steered_model(
    architectures: dict[str, LanguageModel], tmp_path: Path
) -> None:
    for kind, c in [("llama", 1.5), ("llama", -2.0), ("qwen2", -2.0), ("qwen3", -2.0), ("opt", -2.0)]:
        with case(kind, c):
            model = architectures[kind]
            vector = tiny_models.vector(model, layers=(0, 1, 3), norm=3.0)
            made = export(vector, model, tmp_path / kind, c=c)
            assert distance(vector, model, c, in_peft(model, made.path)) <= CLOSE
            assert made.facts.agreement.p95 <= SAME
            assert distance(vector, model, c, model.model) > 100 * CLOSE  # the steering is not small


def test_a_block_with_a_norm_after_its_mlp_is_refused(architectures: dict[str, LanguageModel], tmp_path: Path) -> None:
    message = (
        r"a shift of the output of 'mlp.down_proj', its last Linear of the hidden size, is not a shift of the block's"
    )
    for kind in ("gemma2", "gemma3_text", "gemma3_nested"):
        with case(kind):
            model = architectures[kind]
            with pytest.raises(UserError, match=message):
                export(tiny_models.vector(model), model, tmp_path / "exports" / "it", c=1.0)
            assert leftovers(tmp_path / "exports") == []


def test_the_linear_that_carries_the_shift_is_found_by_what_it_does_and_a_scale_after_it_noticed(
    architectures: dict[str, LanguageModel], tiny_folder: Path
) -> None:
    for kind, name in [("llama", "model.layers.2.mlp.down_proj"), ("opt", "decoder.layers.2.fc2")]:
        with case(kind):
            writer = straight_writer(architectures[kind], 2)
            assert writer.endswith(name)
            assert isinstance(architectures[kind].model.get_submodule(writer), nn.Linear)

    for dtype in [torch.float32, torch.bfloat16]:
        with case(dtype):
            model = tiny_models.load(tiny_folder, dtype)
            assert straight_writer(model, 1)
            model.blocks[1].mlp.register_forward_hook(lambda module, inputs, output: 0.9 * output)
            with pytest.raises(UserError, match=r"block 1 of .* is not a shift of the block's output"):
                straight_writer(model, 1)


def test_without_c_the_vector_s_own_coefficient_is_exported(tiny: LanguageModel, tmp_path: Path) -> None:
    vector = tiny_models.vector(tiny).with_c_star(-0.75)
    made = export(vector, tiny, tmp_path / "adapter")
    assert read_record(made.path)["c"] == made.facts.c == -0.75
    weights = load_file(made.path / "adapter_model.safetensors")
    biases = {name: tensor for name, tensor in weights.items() if name.endswith("lora_B.bias")}
    assert len(biases) == len(vector.directions)
    for layer, v_D in vector.directions.items():
        assert torch.equal(biases[f"base_model.model.model.layers.{layer}.mlp.down_proj.lora_B.bias"], -0.75 * v_D)
    assert not any(bool(tensor.any()) for name, tensor in weights.items() if name not in biases)


def test_the_same_vector_gives_the_same_adapter_bytes(tiny: LanguageModel, tmp_path: Path) -> None:
    vector = tiny_models.vector(tiny, layers=(2,))
    for bias in (True, False):
        folders = [tmp_path / name for name in ("one", "other")]
        one, other = (export(vector, tiny, folder, c=0.5, bias=bias, max_kl=1e9).path for folder in folders)
        for file in ("adapter_config.json", "adapter_model.safetensors", "README.md", "heal_export.json"):
            assert (one / file).read_bytes() == (other / file).read_bytes()


def test_every_method_but_those_that_add_c_v_is_refused_by_name(
    tiny: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vector = tiny_models.vector(tiny)
    assert {"mean_diff", "pca"} <= ADDITIVE
    assert {"cosine_gated", "directional_ablation", "sspace", "super_sspace"} <= METHODS.keys() - ADDITIVE
    planted = {
        "of_a_test": METHODS["pca"],
        "elsewhere_in_a_test": dataclasses.replace(METHODS["pca"], site="writer"),
        "gated_in_a_test": dataclasses.replace(METHODS["pca"], apply=METHODS["cosine_gated"].apply),
    }
    for name, method in planted.items():
        monkeypatch.setitem(METHODS, name, dataclasses.replace(method, name=name))
    able = ADDITIVE | {"of_a_test"}
    for name in METHODS.keys() - able:
        with case(name), pytest.raises(UserError, match=f"'{name}' cannot be exported as an adapter"):
            export(dataclasses.replace(vector, method=name), tiny, tmp_path / "it", c=1.0)
    assert leftovers(tmp_path) == []
    for name in able:
        with case(name):
            assert (
                export(dataclasses.replace(vector, method=name), tiny, tmp_path / name, c=1.0).facts.agreement.p95
                <= SAME
            )


def test_no_coefficient_and_one_that_does_nothing_are_refused(tiny: LanguageModel, tmp_path: Path) -> None:
    for c, message in [(None, "give one with c="), (0.0, "c=0: a finite number other than 0")]:
        with case(c), pytest.raises(UserError, match=message):
            export(tiny_models.vector(tiny), tiny, tmp_path / "it", c=c)
    assert leftovers(tmp_path) == []


def test_an_export_that_is_not_the_steered_model_leaves_nothing_behind(tmp_path: Path) -> None:
    folder = tiny_models.save("llama", tmp_path / "base")
    model = tiny_models.load(folder)
    weights = load_file(folder / "model.safetensors")
    weights["model.embed_tokens.weight"][:] += 1.0  # what plain peft loads is another base now
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ExportError, match="does not say what the steered model says"):
        export(tiny_models.vector(model), model, tmp_path / "exports" / "it", c=1.0)
    assert leftovers(tmp_path / "exports") == []


# Rank 1 without a bias


def test_rank_1_is_b_equal_to_c_v_without_a_bias_and_says_how_near_it_is(
    tiny: LanguageModel, rank1: VectorExport
) -> None:
    weights = load_file(rank1.path / "adapter_model.safetensors")
    assert "lora_bias" not in json.loads((rank1.path / "adapter_config.json").read_text())
    assert not any(name.endswith("bias") for name in weights)
    for layer, v_D in tiny_models.vector(tiny).directions.items():
        name = f"base_model.model.model.layers.{layer}.mlp.down_proj"
        assert torch.equal(weights[f"{name}.lora_B.weight"][:, 0], 0.5 * v_D)
        assert torch.equal(weights[f"{name}.lora_A.weight"][0], rank1.facts.gates[layer].a_I)

    facts, card = rank1.facts, (rank1.path / "README.md").read_text()
    assert facts.kl is not None
    assert 0 < facts.kl.p50 <= facts.kl.p95
    assert f"{facts.kl.p95:.2e}" in card
    assert str(facts.agreement) in card
    assert all(f"| {gate.mean:.3f} | {gate.sd:.3f} |" in card for gate in facts.gates.values())
    assert read_record(rank1.path)["kl"] == {"p50": facts.kl.p50, "p95": facts.kl.p95}
    assert str(Path(tiny.name).parent) not in card


def test_the_gate_s_statistics_are_those_of_plain_forward_passes(tiny: LanguageModel, rank1: VectorExport) -> None:
    rows = NeutralTexts(tiny, ModelConfig().system, 24).rows()[1::2]
    weights = load_file(rank1.path / "adapter_model.safetensors")
    values: dict[int, list[Tensor]] = {layer: [] for layer in rank1.facts.gates}
    for row in rows:
        seen: dict[int, Tensor] = {}

        def keeper(layer: int, seen: dict[int, Tensor] = seen) -> Callable:
            return lambda module, inputs: seen.__setitem__(layer, inputs[0][0])

        handles = [tiny.blocks[layer].mlp.down_proj.register_forward_pre_hook(keeper(layer)) for layer in values]
        with torch.no_grad(), tiny_models.vector(tiny).applied(tiny, 0.5):
            tiny.model(input_ids=torch.tensor([row]))
        for handle in handles:
            handle.remove()
        for layer, x_TI in seen.items():
            a_1I = weights[f"base_model.model.model.layers.{layer}.mlp.down_proj.lora_A.weight"]
            values[layer].append((x_TI @ a_1I.T)[:, 0])
    for layer, gate in rank1.facts.gates.items():
        later = torch.cat([value_T[1:] for value_T in values[layer]])
        assert gate.mean == pytest.approx(float(later.mean()), abs=1e-4)
        assert gate.sd == pytest.approx(float(later.std()), rel=1e-2)
        assert gate.p5 == pytest.approx(float(later.quantile(0.05)), abs=1e-3)
        assert gate.p95 == pytest.approx(float(later.quantile(0.95)), abs=1e-3)
        assert gate.first == pytest.approx(float(torch.stack([v[0] for v in values[layer]]).mean()), abs=1e-4)


def test_rank_1_is_exact_where_an_input_of_the_linear_is_constant(tmp_path: Path) -> None:
    folder = tiny_models.save("opt", tmp_path / "base")
    weights = load_file(folder / "model.safetensors")
    for name in weights:
        if name.endswith("fc1.weight"):
            weights[name][7] = 0.0
        if name.endswith("fc1.bias"):
            weights[name][7] = 4.0
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    model = tiny_models.load(folder)
    vector = tiny_models.vector(model)
    made = export(vector, model, tmp_path / "adapter", c=2.0, bias=False)
    assert {gate.kind for gate in made.facts.gates.values()} == {"coordinate 7"}
    assert all(gate.sd < 1e-6 and gate.first == pytest.approx(1) for gate in made.facts.gates.values())
    assert distance(vector, model, 2.0, in_peft(model, made.path)) <= CLOSE


def test_least_squares_minimises_its_objective_and_the_read_out_nearer_to_1_on_held_out_texts_is_taken() -> None:
    source = torch.Generator().manual_seed(0)
    for count, width in ((40, 6), (6, 40)):
        x_NI = torch.randn(count, width, generator=source, dtype=torch.float64)
        strength = 0.1 * float(x_NI.square().sum(1).median()) * count / width
        a_I = least_squares(x_NI, 0.1)
        gradient_I = x_NI.T @ (x_NI @ a_I - 1) + strength * a_I
        assert float(gradient_I.abs().max()) < 1e-9

    source = torch.Generator().manual_seed(0)
    texts = [torch.randn(12, 5, generator=source) for _ in range(4)]
    for x_TI in texts:
        x_TI[:, 3] = 2.0
    gate = constant_gate(texts[:2], texts[2:])
    assert gate.kind == "coordinate 3"
    assert gate.a_I.tolist() == [0, 0, 0, 0.5, 0]
    tilted = torch.linalg.qr(torch.randn(5, 5, generator=source))[0]
    turned = constant_gate([x_TI @ tilted for x_TI in texts[:2]], [x_TI @ tilted for x_TI in texts[2:]])
    assert turned.kind == "least squares"
    _, a_I = best_coordinate(torch.cat([x_TI @ tilted for x_TI in texts[:2]]))
    assert turned.sd < judged(a_I, "", [x_TI @ tilted for x_TI in texts[2:]]).sd


# The command


@pytest.fixture(scope="module")
def file(tiny: LanguageModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A vector of the tiny model with a coefficient of its own, under a name that is not where the model is."""
    path = tmp_path_factory.mktemp("vectors") / "warm.safetensors"
    vector = dataclasses.replace(tiny_models.vector(tiny), model="somewhere/else", c_star=0.5)
    path.write_bytes(vector.to_bytes())
    return path


def test_the_command_exports_a_vector_beside_it_and_says_what_came_out(tiny: LanguageModel, file: Path) -> None:
    done = heal("export", f"vector={file}", f"model={tiny.name}", "c=-2", "device=cpu")
    assert done.returncode == 0, done.stderr
    path = file.parent / "warm-adapter-c-2"
    assert str(path) in done.stdout
    assert str(Agreement(**read_record(path)["agreement"])) in done.stdout
    assert distance(tiny_models.vector(tiny), tiny, -2.0, in_peft(tiny, path)) <= CLOSE


def without_pad_token(tiny_folder: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model whose tokenizer names no pad token."""
    folder = Path(shutil.copytree(tiny_folder, tmp_path / "base"))
    edit_json(folder / "tokenizer_config.json", pad_token=None)
    return folder


def saved(path: Path, model: str) -> Path:
    """A vector of a model of that name with the width of the tiny one, at c = 0.5."""
    vector = SteeringVector(tiny_models.states({1: torch.ones(tiny_models.HIDDEN)}), "mean_diff", model, "warm", 0.5)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(vector.to_bytes())
    return path


def run_of(path: Path, *settings: str) -> RunFolder:
    """A run that has only begun."""
    run = RunFolder(path)
    run.start(load_recipe(["recipe=smoke", *settings]), Facts("float32", tiny_models.trait()))
    return run


def test_a_vector_in_a_run_s_folder_is_exported_with_the_run_s_model_section(tiny_folder: Path, tmp_path: Path) -> None:
    base = without_pad_token(tiny_folder, tmp_path)
    run = run_of(tmp_path / "run", f"model.name={base}", "model.pad_token=<|pad|>", "model.revision=v1")
    done = heal("export", f"vector={saved(run.round(0) / 'vector.safetensors', str(base))}", "device=cpu")
    assert done.returncode == 0, done.stderr
    config = json.loads((run.round(0) / "vector-adapter" / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["revision"]) == (str(base), "v1")


def test_what_a_model_needs_can_be_given_for_a_vector_outside_of_a_run(tiny_folder: Path, tmp_path: Path) -> None:
    base = without_pad_token(tiny_folder, tmp_path)
    template = tmp_path / "plain.jinja"
    template.write_text("{% for message in messages %}[{{ message['content'] }}]{% endfor %}")
    given = ("pad_token=<|pad|>", f"chat_template={template}", "revision=v2", "device=cpu")
    done = heal("export", f"vector={saved(tmp_path / 'vector.safetensors', str(base))}", *given)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "vector-adapter" / "adapter_config.json").read_text())["revision"] == "v2"


def test_the_recipe_around_a_vector_of_another_model_is_left_alone(tmp_path: Path) -> None:
    settings = ("model.name=a/model", "model.revision=v1", "model.attention=eager", "model.load_4bit=true")
    run = run_of(tmp_path / "run", *settings)
    files = {name: saved(run.path / "kept" / f"{name[-1]}.safetensors", name) for name in ("a/model", "a/nother")}
    found = {name: model_section(path, SteeringVector.load(path)) for name, path in files.items()}
    assert found["a/model"] == ModelConfig(name="a/model", revision="v1", attention="eager")
    assert found["a/nother"] == ModelConfig(name="a/nother")


def test_words_that_do_not_go_together_are_one_line(file: Path) -> None:
    for words, message in [
        ([], "one of them is needed"),
        (["run=x", "vector={file}"], "not both"),
        (["vector={file}", "rank=2"], "rank=2: says nothing of a steering vector"),
        (["vector={file}", "round=best"], "round=best: says nothing of a steering vector"),
        (["vector={file}", "gate=0.5"], "use c=..."),
        (["vector={file}", "format=model"], "use format=adapter"),
        (["vector={file}", "format=gguf-adapter"], "format=gguf for a control vector"),
        (["run=x", "bias=false"], "bias=false: says nothing of a run"),
        (["run=x", "revision=v1"], "revision=v1: says nothing of a run"),
    ]:
        refused(["export", *(word.format(file=file) for word in words)], message)
