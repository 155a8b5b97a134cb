"""The kinds of adapter that a difference can be trained with, as configs of peft.

lora (arXiv 2106.09685), pissa (2404.02948), dora (2402.09353), delora (2503.18225), oft (2306.07280) and
ia3 (2205.05638). What the recipe has no key for is as peft has it by default.
"""

from collections.abc import Callable, Sequence
from typing import Literal

from peft import DeloraConfig, IA3Config, LoraConfig, OFTConfig, PeftConfig

from heal.accumulator import linear_names
from heal.adapter_kinds import foldable
from heal.config import HealConfig
from heal.errors import UserError
from heal.models.language_model import LanguageModel

AdapterKind = Literal["lora", "pissa", "dora", "delora", "oft", "ia3"]

# The Linears that (IA)^3 rescales: keys and values at their output, the MLP at the input of its last layer.
_IA3_OUTPUTS = ("k_proj", "v_proj")
_IA3_INPUTS = ("down_proj", "fc2")


def _lora(targets: list[str], config: HealConfig, **more) -> LoraConfig:
    given = {"init_lora_weights": foldable(config.init).initial} | more
    return LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=0.0,
        target_modules=targets,
        task_type="CAUSAL_LM",
        **given,
    )


def _pissa(targets: list[str], config: HealConfig) -> LoraConfig:
    return _lora(targets, config, init_lora_weights="pissa")


def _dora(targets: list[str], config: HealConfig) -> LoraConfig:
    return _lora(targets, config, use_dora=True)


def _delora(targets: list[str], config: HealConfig) -> DeloraConfig:
    return DeloraConfig(r=config.rank, target_modules=targets, task_type="CAUSAL_LM")


def _oft(targets: list[str], config: HealConfig) -> OFTConfig:
    return OFTConfig(target_modules=targets, task_type="CAUSAL_LM")


def _ia3(targets: list[str], config: HealConfig) -> IA3Config:
    inputs = [name for name in targets if name.endswith(_IA3_INPUTS)]
    outputs = [name for name in targets if name.endswith(_IA3_OUTPUTS)]
    if not inputs or not outputs:
        raise UserError(
            f"adapter=ia3: it needs Linears named {', '.join(_IA3_OUTPUTS)} and {' or '.join(_IA3_INPUTS)}, which "
            "this architecture does not have; use another adapter"
        )
    return IA3Config(target_modules=[*outputs, *inputs], feedforward_modules=inputs, task_type="CAUSAL_LM")


KINDS: dict[AdapterKind, Callable[[list[str], HealConfig], PeftConfig]] = {
    "lora": _lora,
    "pissa": _pissa,
    "dora": _dora,
    "delora": _delora,
    "oft": _oft,
    "ia3": _ia3,
}


def adapter_config(
    language_model: LanguageModel, kind: AdapterKind, config: HealConfig, layers: Sequence[int]
) -> PeftConfig:
    """peft's config of one kind on the Linears of the given blocks; `rank`, `alpha`, `init` where they mean anything.

    Raises:
        UserError: the architecture has no Linears for this kind.
    """
    return KINDS[kind](linear_names(language_model, list(layers)), config)
