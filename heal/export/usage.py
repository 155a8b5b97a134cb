"""How an export is loaded, as its card says it: transformers, peft, vLLM."""

import re

from heal.config import ModelConfig
from heal.export.exportable import Exportable
from heal.export.markdown import fenced
from heal.models.checkpoint import loading_class
from heal.models.embedded import NAME as EMBEDDED_NAME
from heal.models.four_bit import as_code

EMBEDDED_HUB = f"HuggingFaceTB/{EMBEDDED_NAME}"

# What vLLM takes as --max-lora-rank.
VLLM_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)


def vllm_rank(rank: int) -> int | None:
    """The smallest --max-lora-rank of vLLM that fits; None when none does."""
    return next((limit for limit in VLLM_RANKS if limit >= rank), None)


def base_name(config: ModelConfig) -> str:
    """The hub id, or a local folder's own name: no path of the computer that made the export."""
    if config.name == "embedded":
        return EMBEDDED_HUB
    return config.folder.resolve().name if config.folder else config.name


def loadable(config: ModelConfig) -> str:
    """What a snippet loads the base from: the hub id, or a place to fill in."""
    return "PATH/TO/BASE" if config.folder else base_name(config)


def loading(student: Exportable, rank: int | None) -> str:
    """The section of a card on its use; `rank`: of the adapter, None for a merged model."""
    system = student.config.system
    messages = ([{"role": "system", "content": system}] if system else []) + [{"role": "user", "content": "..."}]
    where = loadable(student.config)
    revision = f", revision={student.config.revision!r}" if student.config.revision else ""
    thinking = student.config.thinking
    switch = f", enable_thinking={thinking}" if student.model.chat.has_switch else ""
    bits = f", {as_code(student.model.model.dtype)}" if student.config.load_4bit else ""
    ask = [
        f"messages = {messages!r}",
        f"text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True{switch})",
        "prompt = tokenizer(text, add_special_tokens=False, return_tensors='pt')",
        "said = model.generate(**prompt, max_new_tokens=100)[0, prompt['input_ids'].shape[1]:]",
        "print(tokenizer.decode(said, skip_special_tokens=True))",
    ]
    loader = loading_class(student.model.model)
    imports = f"from transformers import {loader}, AutoTokenizer{', BitsAndBytesConfig' if bits and rank else ''}"
    if not rank:
        code = [
            imports,
            "",
            f"model = {loader}.from_pretrained('PATH/TO/THIS/FOLDER', dtype='auto')",
            "tokenizer = AutoTokenizer.from_pretrained('PATH/TO/THIS/FOLDER')",
            *ask,
        ]
        return "\n\n".join(
            [
                "## Use",
                "With transformers:",
                fenced("\n".join(code), "python"),
                "With vLLM:",
                fenced("vllm serve PATH/TO/THIS/FOLDER", "sh"),
            ]
        )
    code = [
        "from peft import PeftModel",
        imports,
        "",
        f"base = {loader}.from_pretrained({where!r}{revision}, dtype='auto'{bits})",
        "model = PeftModel.from_pretrained(base, 'PATH/TO/THIS/FOLDER')",
        f"tokenizer = AutoTokenizer.from_pretrained({where!r}{revision})",
        *ask,
    ]
    plain = [
        f"model = {loader}.from_pretrained({where!r}{revision}, dtype='auto'{bits})",
        "model.load_adapter('PATH/TO/THIS/FOLDER')",
    ]
    return "\n\n".join(
        [
            "## Use",
            _peft_note(student.config, loader),
            fenced("\n".join(code), "python"),
            "With transformers alone (peft installed):",
            fenced("\n".join(plain), "python"),
            *_vllm(where, student.trait.name, rank),
        ]
    )


def _peft_note(config: ModelConfig, loader: str) -> str:
    """What stands before the code for peft; `loader`: the class of transformers that loads the base."""
    if loader != "AutoModelForCausalLM":  # which peft's own loader would take for the base
        return "With peft:"
    if config.name == "embedded" or config.folder:
        return (
            "With peft (adapter_config.json names the base's folder on the computer that made this; there "
            "`AutoPeftModelForCausalLM.from_pretrained('PATH/TO/THIS/FOLDER')` is enough):"
        )
    return "With peft (`AutoPeftModelForCausalLM.from_pretrained('PATH/TO/THIS/FOLDER')` finds the base by itself):"


def _vllm(base: str, name: str, rank: int) -> list[str]:
    limit = vllm_rank(rank)
    if limit is None:
        return [
            f"vLLM takes adapters up to rank {VLLM_RANKS[-1]}, and this one has rank {rank}: export it again with "
            f"`rank={VLLM_RANKS[-1]}` (or less), or with `format=model`."
        ]
    name = re.sub(r"[^A-Za-z0-9_.-]", "_", name)
    command = f"vllm serve {base} --enable-lora --max-lora-rank {limit} --lora-modules {name}=PATH/TO/THIS/FOLDER"
    return [f"With vLLM (rank {rank} needs `--max-lora-rank {limit}`):", fenced(command, "sh")]
