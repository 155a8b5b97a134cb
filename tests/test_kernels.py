"""Layers that compute without their fast kernels are named, with what to install."""

import ast
import importlib.util
from pathlib import Path

import pytest
import torch
import transformers

from heal.models import kernels
from heal.models.kernels import kernels_of, slow_layers
from tests import tiny as tiny_models
from tests.cases import case
from tests.families import FAMILIES
from tests.tiny import CPU, load

CUDA = torch.device("cuda")


def decorated(tree: ast.Module) -> dict[str, str]:
    """Functions of a module of transformers that stand in for a kernel, and the package that the kernel is in."""
    found = {}
    for function in tree.body:
        for decorator in getattr(function, "decorator_list", ()):
            if getattr(getattr(decorator, "func", None), "id", "") == "use_kernel_func_from_hub_with_fallback":
                found[function.name] = decorator.args[1].value
    return found


def test_every_layer_of_transformers_that_has_a_kernel_is_known_with_its_packages():
    known = 0
    for path in sorted(Path(transformers.__file__).parent.glob("models/*/modeling_*.py")):
        source = path.read_text(encoding="utf-8")
        if "use_kernel_func_from_hub_with_fallback(" not in source:
            continue
        tree = ast.parse(source)
        packages = decorated(tree)
        for layer in (node for node in tree.body if isinstance(node, ast.ClassDef)):
            names = {node.id for node in ast.walk(layer) if isinstance(node, ast.Name)}
            needed = {packages[name] for name in names & packages.keys()}
            with case(path.name, layer.name):
                assert not needed or needed == kernels_of(type(layer.name, (), {})).keys()
                known += bool(needed)
    assert known > 20


def test_missing_kernels_are_named_where_they_would_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    assert slow_layers(tiny_models.ARCHITECTURES["llama"](), CUDA) == []
    FAMILIES["Qwen3.5"].save(tmp_path)
    model = load(tmp_path)
    installed: set[str] = set()
    monkeypatch.setattr(
        kernels, "find_spec", lambda name: importlib.util.find_spec("ast") if name in installed else None
    )
    (on_gpu,), (on_cpu,) = slow_layers(model.model, CUDA), slow_layers(model.model, CPU)
    assert on_gpu.startswith("Qwen3_5GatedDeltaNet layers compute in plain PyTorch")
    assert on_gpu.endswith("run: pip install flash-linear-attention causal-conv1d")
    assert on_cpu in model.notices
    assert on_cpu.endswith("(flash-linear-attention, causal-conv1d), which run on GPUs only")
    installed.add("fla")
    assert slow_layers(model.model, CUDA)[0].endswith("run: pip install causal-conv1d")
    installed.add("causal_conv1d")
    assert slow_layers(model.model, CUDA) == []
