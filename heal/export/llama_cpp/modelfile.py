"""A Modelfile, by which Ollama makes a model of a GGUF file: `ollama create NAME -f Modelfile`."""

from heal.config import ModelConfig
from heal.models.language_model import LanguageModel

MODELFILE = "Modelfile"


def modelfile(file: str, model: LanguageModel, config: ModelConfig) -> str:
    """Names the file, the system prompt of training and what ends an answer; the chat template is in the GGUF.

    Quotes have no escape there, so a system prompt with three in a row, or one at its end, is left to the reader.
    """
    tokens = model.chat.tokenizer.convert_ids_to_tokens(sorted(model.end_ids))
    lines = [f"FROM ./{file}", *(f"PARAMETER stop {_quoted(token)}" for token in tokens)]
    if '"""' in config.system or config.system.endswith('"'):
        lines.append("# SYSTEM: the prompt of training has quotes that this file cannot hold; give it in the chat")
    elif config.system:
        lines.append(f"SYSTEM {_quoted(config.system)}")
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    return f'"""{text}"""' if "\n" in text or '"' in text else f'"{text}"'
