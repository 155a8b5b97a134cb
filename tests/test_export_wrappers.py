"""Exports of a multimodal base: under the module names of its own class, and a merged one that can be served whole."""

import json
from pathlib import Path

import torch
import transformers
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoImageProcessor

from heal.export.adapter import export_adapter
from heal.export.merged import export_merged
from heal.export.verify import model_logits, probes, student_logits
from tests import finished
from tests.cases import case
from tests.families import FAMILIES, WRAPPERS
from tests.tiny import CHATML, load

PROCESSOR = {
    "preprocessor_config.json": {"image_processor_type": "Gemma3ImageProcessor", "size": {"height": 28, "width": 28}},
    "processor_config.json": {"processor_class": "Gemma3Processor", "image_seq_length": 4},
    "video_preprocessor_config.json": {"video_processor_type": "Qwen3VLVideoProcessor"},
    "chat_template.json": {"chat_template": CHATML},
}


def test_a_multimodal_student_is_exported_as_the_class_that_its_base_is(tmp_path: Path):
    for name in WRAPPERS:
        with case(name):
            comes_out_as_its_class(name, tmp_path / name.replace("/", "-"))


def comes_out_as_its_class(name: str, tmp_path: Path) -> None:
    base = tmp_path / "base"
    kind = type(FAMILIES[name].build())
    FAMILIES[name].save(base)
    for file, content in PROCESSOR.items():
        (base / file).write_text(json.dumps(content))
    student = finished.student(finished.write_run(tmp_path / "run", base))
    adapter, merged = export_adapter(student, tmp_path / "adapter"), export_merged(student, tmp_path / "model")

    layers = dict(kind.from_pretrained(base).named_modules())
    tensors = load_file(adapter.path / "adapter_model.safetensors")
    assert all(key.removeprefix("base_model.model.").rpartition(".lora_")[0] in layers for key in tensors)
    prompts = probes(student)
    plain = PeftModel.from_pretrained(kind.from_pretrained(base, dtype=torch.float32), str(adapter.path)).eval()
    for ours, theirs in zip(student_logits(student, 1.0, prompts), model_logits(plain, prompts), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)  # the same sums, possibly in another order

    assert json.loads((merged.path / "config.json").read_text())["architectures"] == [kind.__name__]
    assert type(load(merged.path).model) is kind
    for file in PROCESSOR:
        assert (merged.path / file).read_bytes() == (base / file).read_bytes(), file
    assert type(AutoImageProcessor.from_pretrained(merged.path)) is type(AutoImageProcessor.from_pretrained(base))

    for export in (adapter, merged):
        with case(export.path.name):
            card = (export.path / "README.md").read_text()
            loader = card.partition("from transformers import ")[2].partition(",")[0]
            assert type(getattr(transformers, loader).from_pretrained(base)) is kind


def test_a_chat_template_of_the_recipe_is_the_only_one_in_the_export(tmp_path: Path):
    base, template = tmp_path / "base", tmp_path / "mine.jinja"
    FAMILIES["Gemma 3"].save(base)
    (base / "chat_template.json").write_text(json.dumps(PROCESSOR["chat_template.json"]))
    template.write_text(CHATML.replace("<|im_end|>\n", "<|im_end|>"))
    student = finished.student(finished.write_run(tmp_path / "run", base, chat_template=str(template)))
    merged = export_merged(student, tmp_path / "model")
    assert [path.name for path in merged.path.glob("chat_template*")] == ["chat_template.jinja"]
    assert (merged.path / "chat_template.jinja").read_text() == template.read_text()
