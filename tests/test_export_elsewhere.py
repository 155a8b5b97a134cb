"""Exports on other computers: what names the base, what older libraries read, and cards whose code runs as written."""

import importlib.util
import json
import re
import sys
from pathlib import Path

import pytest
import transformers
from transformers import AutoConfig

from heal.config import ModelConfig
from heal.export.adapter import export_adapter
from heal.export.base import EMBEDDED_HUB, base_of
from heal.export.exportable import Settings
from heal.export.merged import export_merged
from heal.export.readable import older_rope
from heal.export.usage import Usage
from heal.export.vector import export_vector
from heal.models.embedded import INSTALL, PACKAGE
from heal.run.student import Student
from tests import finished, tiny
from tests.cases import case
from tests.commanded import ROOT
from tests.families import FAMILIES

sys.path.insert(0, str(ROOT / "scripts"))
import cards


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama that samples, whose rotary positions and tokenizer class are not the defaults of transformers 4."""
    folder = tiny.save("llama", tmp_path_factory.mktemp("bases") / "mine")
    rope = {"rope_type": "linear", "factor": 2.0, "rope_theta": 50000.0}
    finished.edit_json(folder / "config.json", rope_parameters=rope, rope_scaling=None, of_the_authors="kept")
    finished.edit_json(folder / "tokenizer_config.json", tokenizer_class="TokenizersBackend", add_prefix_space=None)
    finished.edit_json(folder / "generation_config.json", do_sample=True, temperature=5.0)
    return folder


@pytest.fixture(scope="module")
def student(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Student:
    return finished.student(finished.write_run(tmp_path_factory.mktemp("runs") / "run", base))


def test_an_adapter_names_a_base_that_others_can_load_or_says_that_they_cannot(
    student: Student, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = student.model
    monkeypatch.setattr(model.model.config, "_commit_hash", "0a1b2c", raising=False)
    monkeypatch.setenv("HOME", str(Path(model.name).parent))
    for name, named, reference, revision, said in (
        ("org/a-model", None, "org/a-model", "0a1b2c", None),
        ("embedded", None, EMBEDDED_HUB, None, "4-bit copy"),
        ("~/mine", None, "~/mine", None, "which only this computer has; if the base is on the hub, name it with base="),
        (model.name, "org/a-model", "org/a-model", None, None),
    ):
        with case(name, named):
            found = base_of(model, ModelConfig(name=name), named)
            assert (found.reference, found.revision) == (reference, revision)
            assert (said or "") in (found.notice or "")
            assert bool(said) == bool(found.notice)
            assert str(Path(model.name).parent) not in found.name


def test_the_rotary_positions_of_transformers_5_are_said_as_4_says_them() -> None:
    llama3 = {"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 64}
    for parameters, older in (
        ({"rope_type": "default", "rope_theta": 1e6}, {"rope_theta": 1e6, "rope_scaling": None}),
        (llama3 | {"rope_theta": 5e5}, {"rope_theta": 5e5, "rope_scaling": llama3}),
        (
            {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5},
            {"rope_theta": 1e4, "partial_rotary_factor": 0.5, "rope_scaling": None},
        ),
        (
            {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            },
            {
                "rope_theta": 1e6,
                "rope_local_base_freq": 1e4,
                "rope_scaling": {"rope_type": "linear", "factor": 8.0},
            },
        ),
    ):
        with case(parameters):
            found = older_rope(parameters)
            assert {key: found[key] for key in older} == older


def test_a_merged_model_says_everything_twice_and_is_read_as_its_base_is(
    student: Student, base: Path, tmp_path: Path
) -> None:
    folder = export_merged(student, tmp_path / "model").path
    config = json.loads((folder / "config.json").read_text())
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"] == 50000.0
    assert config["rope_scaling"] == {"rope_type": "linear", "factor": 2.0}
    assert config["torch_dtype"] == config["dtype"] == "float32"
    assert config["of_the_authors"] == "kept"
    ours, theirs = (AutoConfig.from_pretrained(where).to_dict() for where in (folder, base))
    differing = {key for key, value in theirs.items() if ours[key] != value}
    assert not differing - {"dtype", "transformers_version", "_name_or_path"}
    for family in ("Gemma 3", "Qwen3", "Phi-3 / Phi-4", "Llama 3"):
        with case(family):
            FAMILIES[family].save(tmp_path / family)
            run = finished.write_run(tmp_path / f"{family} run", tmp_path / family)
            there = export_merged(finished.student(run), tmp_path / f"{family} merged").path
            ours, theirs = (AutoConfig.from_pretrained(where).get_text_config() for where in (there, tmp_path / family))
            assert ours.rope_parameters == theirs.rope_parameters


def test_the_tokenizer_of_an_export_is_one_that_transformers_4_knows(student: Student, tmp_path: Path) -> None:
    for folder in (export_adapter(student, tmp_path / "a").path, export_merged(student, tmp_path / "m").path):
        content = json.loads((folder / "tokenizer_config.json").read_text())
        assert content["tokenizer_class"] == "PreTrainedTokenizerFast"
        assert not {"extra_special_tokens", "add_prefix_space", "is_local", "name_or_path"} & content.keys()
        assert (folder / "chat_template.jinja").read_text() == student.model.chat.tokenizer.chat_template


def test_every_block_of_python_in_a_card_runs_as_it_is_written_and_every_way_of_asking_is_greedy(
    student: Student, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tiny.load(base)
    named, vector = Settings(base=str(base)), tiny.vector(model)
    config = ModelConfig(name=str(base))
    folders = {
        "adapter": export_adapter(student, tmp_path / "adapter", named).path,
        "merged": export_merged(student, tmp_path / "merged", named).path,
        "vector": export_vector(vector, model, config, tmp_path / "vector", 0.5, named=str(base)).path,
    }
    for kind, folder in folders.items():
        code = [block.code for block in cards.blocks(folder, "python")]
        assert len([block for block in code if "vllm" not in block]) == 2
        assert len(code) == (2 if kind == "vector" else 3)  # vLLM takes no bias
        monkeypatch.chdir(folder)
        texts = set()
        for block in code:
            with case(kind, block):
                if "vllm" in block:
                    compile(block, "card", "exec")
                    assert "temperature=0," in block
                    continue
                capsys.readouterr()
                exec(block, {"__name__": "__main__"})
                texts.add(capsys.readouterr().out.strip())
        with case(kind):
            (text,) = texts  # of generate and of a pipeline
            assert text
            requests = [block.code for block in cards.blocks(folder, "sh") if block.code.startswith("curl ")]
            assert len(requests) == len(code) - 2
            assert all('"temperature": 0' in request for request in requests)


def test_a_card_says_what_an_engine_refuses_before_one_tries(student: Student, base: Path, tmp_path: Path) -> None:
    model = tiny.load(base)
    vector = export_vector(tiny.vector(model), model, ModelConfig(name=str(base)), tmp_path / "vector", 0.5).path
    refusing = (vector / "README.md").read_text()
    assert "vLLM takes no adapter with a bias: export the vector again with `bias=false`" in refusing
    assert "llama.cpp takes no adapter with a bias" in refusing
    assert "peft from 0.14" in refusing
    adapter = (export_adapter(student, tmp_path / "adapter").path / "README.md").read_text()
    assert "peft from 0.13" in adapter
    assert f"Written with transformers {transformers.__version__}" in adapter
    assert f"--lora-modules {student.trait.name}=." in adapter


def test_the_code_for_the_embedded_model_loads_the_weights_that_it_was_trained_on(student: Student) -> None:
    config = ModelConfig(name="embedded")
    use = Usage(student.model, config, base_of(student.model, config), "warm", "Sing.").adapter(8)
    (weights,) = set(re.findall(r"gguf_file='(.*?)'", use))
    (folder,) = importlib.util.find_spec(PACKAGE).submodule_search_locations
    assert (Path(folder) / weights).is_file()
    assert f"LLM('{EMBEDDED_HUB}', tokenizer='.'" in use
    assert INSTALL in use
