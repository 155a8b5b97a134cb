"""What all tests share: one thread, no network, and tiny models built once."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["GOMP_SPINCOUNT"] = "10000"

from pathlib import Path

import pytest
import torch

from heal.models.language_model import LanguageModel
from heal.trait import Trait
from tests import tiny as tiny_models

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny Llama; copy it before changing anything."""
    return tiny_models.save("llama", tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="session")
def tiny(tiny_folder: Path) -> LanguageModel:
    """A tiny Llama in float32; leave it as it is."""
    return tiny_models.load(tiny_folder)


@pytest.fixture(scope="session", params=list(tiny_models.ARCHITECTURES))
def any_architecture(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    """One tiny model for each architecture in turn; leave it as it is."""
    return tiny_models.load_architecture(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="session")
def tiny_trait() -> Trait:
    """A small valid trait."""
    return tiny_models.trait()
