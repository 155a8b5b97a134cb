"""What all tests share: a known machine, no network, and tiny models built once."""

import gc
import os
from collections.abc import Iterator

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["GOMP_SPINCOUNT"] = "10000"

from pathlib import Path

import pytest
from torch import Tensor

from heal.healing import heal as healing
from heal.healing.trainer import HealTrainer
from heal.models.language_model import LanguageModel
from heal.trait import Trait
from tests import machine
from tests import tiny as tiny_models

machine.prepare()

LONGEST = ("test_quickstart.py", "test_sweep.py")  # minutes in few tests: begun last, a worker would wait for them


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.name not in LONGEST)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny Llama; copy it before changing anything."""
    return tiny_models.save("llama", tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="session")
def tiny(tiny_folder: Path) -> LanguageModel:
    """A tiny Llama in float32; leave it as it is."""
    return tiny_models.load(tiny_folder)


@pytest.fixture(scope="session")
def architectures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, LanguageModel]:
    """A tiny model of each architecture by its name, to loop over inside a test; leave them as they are."""
    return {
        name: tiny_models.load_architecture(name, tmp_path_factory.mktemp(name)) for name in tiny_models.ARCHITECTURES
    }


@pytest.fixture(scope="session")
def tiny_trait() -> Trait:
    """A small valid trait."""
    return tiny_models.trait()


@pytest.fixture(scope="module")
def quick_collections() -> Iterator[None]:
    """Every trainer collects garbage twice; what was imported before need not be looked through each time."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture
def gradients(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Tensor]]:
    """What the trainer's gradients are just before each optimiser step, before they are clipped."""
    seen: list[dict[str, Tensor]] = []

    class Watched(HealTrainer):
        def training_step(self, model, *args, **kwargs):
            loss = super().training_step(model, *args, **kwargs)
            seen.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
            return loss

    monkeypatch.setattr(healing, "HealTrainer", Watched)
    return seen


@pytest.fixture
def recipe_file(tmp_path: Path) -> Path:
    """A recipe without keys: everything is at its default."""
    path = tmp_path / "plain.yaml"
    path.write_text("# nothing\n")
    return path
