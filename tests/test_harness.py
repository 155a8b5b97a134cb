"""lm-eval on base and student: the same numbers as by hand, kept with the run and shown in its report."""

import dataclasses
import json
import math
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from heal.evaluation.harness import Harness, HarnessFigures
from heal.evaluation.stats import Estimate
from tests import finished, reported
from tests.commanded import heal, refused

DOCS = [
    {"question": f"{one} and {other} make", "choices": [f" {one + other}", f" {one + other + 1}"], "answer": 0}
    for one in range(2, 5)
    for other in range(2, 6)
]
TASK = """
task: sums
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{answer}}}}"
target_delimiter: ""
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
metadata: {{version: 1.0}}
"""


def right(model: nn.Module, tokenizer, doc: dict) -> float:
    """Whether the model finds the right choice the likeliest."""
    prompt = tokenizer(doc["question"])["input_ids"]  # with what the tokenizer puts in front of every text
    scores = []
    for choice in doc["choices"]:
        ids = tokenizer(choice, add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            logp = model(input_ids=torch.tensor([prompt + ids])).logits[0].log_softmax(-1)
        scores.append(sum(float(logp[len(prompt) - 1 + place, token]) for place, token in enumerate(ids)))
    return float(scores[doc["answer"]] == max(scores))


def test_lm_eval_says_of_base_and_student_what_their_likelihoods_say(tiny_folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("lm_eval", reason="the extra 'harness' (EleutherAI's lm-eval) is not installed")
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    (tasks / "sums.jsonl").write_text("".join(json.dumps(doc) + "\n" for doc in DOCS))
    (tasks / "sums.yaml").write_text(TASK.format(data=tasks / "sums.jsonl"))
    run = finished.write_run(tmp_path / "run", tiny_folder, size=0.3)
    done = heal("eval-harness", f"run={run.path}", "tasks=sums", f"include={tasks}", "device=cpu")
    assert done.returncode == 0, done.stderr
    (found,) = Harness.load(run.path, 2).figures

    assert heal("export", f"run={run.path}", "device=cpu").returncode == 0
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder)
    base = AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=torch.float32).eval()
    of_base = [right(base, tokenizer, doc) for doc in DOCS]
    student = PeftModel.from_pretrained(base, str(run.adapter)).eval()
    of_student = [right(student, tokenizer, doc) for doc in DOCS]
    assert (found.base.value, found.student.value) == pytest.approx(
        (sum(of_base) / len(DOCS), sum(of_student) / len(DOCS))
    )
    assert of_base != of_student  # the update counts
    assert found.delta.value == pytest.approx(found.student.value - found.base.value)
    assert found.delta.low <= found.delta.value <= found.delta.high
    assert (found.title, found.delta.n, found.higher_is_better) == ("sums, acc", len(DOCS), True)
    assert f"sums, acc: base {found.base:.3f}, student {found.student:.3f}" in done.stdout
    refused(["eval-harness", f"run={run.path}", "tasks=sum", f"include={tasks}"], "no such task", partly=True)


def figures(task: str, value: float, low: float = 0.1) -> HarnessFigures:
    base, student = Estimate(value, low, 0.9, 12), Estimate(value / 2, low, 0.8, 12)
    delta = Estimate(-value / 2, -0.4, math.nan if math.isnan(low) else -0.1, 12)
    return HarnessFigures(task, "acc", "none", 5, None, False, True, "0.4.13", "1.0", base, student, delta)


def test_the_report_shows_what_lm_eval_measured_after_the_round_that_it_shows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = reported.write_run(tmp_path / "run")
    hostile = f"arc{reported.HOSTILE}"
    first = Harness(2).with_tasks((figures("hellaswag", 0.5), figures(hostile, 0.25, math.nan)))
    first.save(run.path)
    Harness.load(run.path, 2).with_tasks((figures("hellaswag", 0.75),)).save(run.path)
    Harness(1).with_tasks((figures("mmlu", 0.5),)).save(run.path)
    assert [one.task for one in Harness.load(run.path, 2).figures] == [hostile, "hellaswag"]
    assert Harness.load(run.path, 1) == dataclasses.replace(Harness(1), figures=(figures("mmlu", 0.5),))
    shown = reported.section(reported.page_of(run), "side-effects")
    rows = reported.rows_of(shown)
    assert rows["hellaswag, acc"][1][:4] == [
        "0.750 [0.100, 0.900]",
        "0.375 [0.100, 0.800]",
        "-0.375 [-0.400, -0.100]",
        "12",
    ]
    assert "mmlu" not in shown
    assert reported.SCRIPT not in shown
    path = run.path / "harness" / "round-02.json"
    path.write_text(path.read_text().replace("0.75", "0.95"))
    refused(["report", f"run={run.path}"], "round-02.json: damaged")
    monkeypatch.setattr("heal.studies.harness.find_spec", lambda name: None)
    missing = "the package lm_eval is not installed: pip install 'heal[harness]'"
    refused(["eval-harness", f"run={run.path}", "tasks=x"], missing)
