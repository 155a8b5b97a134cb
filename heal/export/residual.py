"""Finds the Linear of a block whose output is added straight to the residual stream, and proves it.

Shape suffixes: B rows, T positions, D hidden size.
"""

from collections.abc import Callable
from contextlib import ExitStack

import torch
from torch import Tensor, nn

from heal.errors import UserError
from heal.models.language_model import LanguageModel

_TEXT = "The kettle is on the table by the window."
_ROUNDINGS = 8  # of the terms of the sum, in which a block's output may differ from it


def straight_writer(language_model: LanguageModel, layer: int) -> str:
    """Name in the model of the last Linear of a block, when what is added to its output is added to the block's.

    The architecture names the candidate: of the block's Linears that put out the hidden size, the one that a
    forward pass runs last. Two forward passes then decide: with a random shift as large as the block's output added
    to what the Linear puts out, the block's output must move by that shift, at every position, within rounding.
    A norm, a scale or another Linear in between fails this (Gemma 2 and 3, Granite).

    Args:
        language_model: the model without steering.
        layer: the block.

    Raises:
        UserError: the block has no such Linear.
    """
    block = language_model.blocks[layer]
    where = f"block {layer} of {language_model.name} ({type(block).__name__})"
    width = language_model.model.config.get_text_config().hidden_size
    linears = {name: module for name, module in block.named_modules() if isinstance(module, nn.Linear)}
    seen: dict[str, Tensor] = {}

    def keep(name: str) -> Callable:
        def hook(module, inputs, output) -> None:
            seen.pop(name, None)
            seen[name] = output

        return hook

    candidates = {name: module for name, module in linears.items() if module.out_features == width}
    plain_BTD = _block_output(language_model, layer, {module: keep(name) for name, module in candidates.items()})
    if not seen:
        raise UserError(
            f"{where}: no Linear in it puts out the hidden size ({width}), so there is none that could carry a "
            "steering vector; steer with heal itself, or export a run"
        )
    last = next(reversed(seen))
    writer = seen[last]  # OPT's has rows and positions in one
    source = torch.Generator().manual_seed(0)
    size = plain_BTD.float().square().mean().sqrt()
    shift_D = (torch.randn(width, generator=source).to(plain_BTD.device) * size).to(plain_BTD.dtype)
    shifting: dict[nn.Module, Callable] = {candidates[last]: lambda module, inputs, output: output + shift_D}
    moved_BTD = _block_output(language_model, layer, shifting)
    if writer.numel() != plain_BTD.numel() or not _moved_by(
        shift_D, plain_BTD, moved_BTD, writer.reshape(plain_BTD.shape)
    ):
        raise UserError(
            f"{where}: what '{last}' puts out is not added straight to the residual stream (something stands in "
            "between, as the norm after the MLP does in Gemma 2 and 3), so no adapter on it can be the steering "
            "vector; steer with heal itself, or export a run"
        )
    names = {module: name for name, module in language_model.model.named_modules()}
    return names[candidates[last]]


def _moved_by(shift_D: Tensor, plain_BTD: Tensor, moved_BTD: Tensor, writer_BTD: Tensor) -> bool:
    """Whether one output is the other one moved by `shift_D`, within the rounding of the terms of the sum."""
    moved, plain, writer, shift = (tensor.float() for tensor in (moved_BTD, plain_BTD, writer_BTD, shift_D))
    rounding_BTD = torch.finfo(plain_BTD.dtype).eps * (plain.abs() + writer.abs() + shift.abs())
    return bool((moved - plain - shift).abs().le(_ROUNDINGS * rounding_BTD).all())


@torch.inference_mode()
def _block_output(language_model: LanguageModel, layer: int, hooks: dict[nn.Module, Callable]) -> Tensor:
    """What a block puts out for a short text with `hooks` on modules of it, `[B, T, D]`."""
    found: list[Tensor] = []
    ids_BT = torch.tensor([language_model.chat.plain_ids(_TEXT)], device=language_model.device)
    with ExitStack() as stack:
        for module, hook in hooks.items():
            stack.callback(module.register_forward_hook(hook).remove)
        block = language_model.blocks[layer]
        stack.callback(block.register_forward_hook(lambda module, inputs, output: found.append(output)).remove)
        language_model.decoder(input_ids=ids_BT, use_cache=False)
    return found[0]
