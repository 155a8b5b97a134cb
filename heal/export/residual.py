"""Finds the Linear of a block whose output is added directly to the residual stream, and verifies it.

Shape suffixes: B rows, T positions, D hidden size.
"""

from collections.abc import Callable
from contextlib import ExitStack

import torch
from torch import Tensor, nn

from heal.errors import UserError
from heal.models.adapted import adapted_linears
from heal.models.language_model import LanguageModel
from heal.steering.sites import Site, hook

_TEXT = "The kettle is on the table by the window."
_ROUNDINGS = 8  # tolerance for a block's output, in roundings of the terms of the sum


def straight_writer(language_model: LanguageModel, layer: int) -> str:
    """Name in the model of a block's last Linear, if a shift of its output shifts the block's output by the same.

    The candidate is the last to run of the block's Linears whose output has the hidden size. Two forward passes then
    decide: with a random shift as large as the block's output added to the output of the Linear, the block's output
    must move by that shift, at every position, within rounding. A norm, a scale or what else reads that sum before
    the block ends fails this test (Gemma 2 and 3, Granite, fused experts).

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
        def keep_output(module, inputs, output) -> None:
            seen.pop(name, None)
            seen[name] = output

        return keep_output

    candidates = {name: module for name, module in linears.items() if module.out_features == width}
    plain_BTD = _block_output(language_model, layer, {module: keep(name) for name, module in candidates.items()})
    if not seen:
        raise UserError(
            f"{where}: no Linear in it has an output of the hidden size ({width}), so none could carry a "
            "steering vector; steer with heal itself, or export a run"
        )
    last = next(reversed(seen))
    writer = seen[last]  # OPT's has rows and positions in one dimension
    source = torch.Generator().manual_seed(0)
    size = plain_BTD.float().square().mean().sqrt()
    shift_D = (torch.randn(width, generator=source).to(plain_BTD.device) * size).to(plain_BTD.dtype)
    shifting: dict[nn.Module, Callable] = {candidates[last]: lambda module, inputs, output: output + shift_D}
    moved_BTD = _block_output(language_model, layer, shifting)
    if writer.numel() != plain_BTD.numel() or not _moved_by(
        shift_D, plain_BTD, moved_BTD, writer.reshape(plain_BTD.shape)
    ):
        raise UserError(
            f"{where}: a shift of the output of '{last}', its last Linear of the hidden size, is not a shift of the "
            "block's output by the same (a norm, a scale or experts lie in between), so no adapter on it can be the "
            "steering vector; steer with heal itself, or export a run"
        )
    names = {module: name for name, module in language_model.model.named_modules()}
    name = names[candidates[last]]
    if name not in adapted_linears(language_model, [layer])[0]:
        raise UserError(
            f"{where}: '{last}' cannot carry an adapter in this architecture (peft takes its name for an expert "
            "tensor's, or its weights are read without calling it); steer with heal itself, or export a run"
        )
    return name


def _moved_by(shift_D: Tensor, plain_BTD: Tensor, moved_BTD: Tensor, writer_BTD: Tensor) -> bool:
    """Whether `moved_BTD` is `plain_BTD + shift_D`, within the rounding of the terms of the sum."""
    moved, plain, writer, shift = (tensor.float() for tensor in (moved_BTD, plain_BTD, writer_BTD, shift_D))
    rounding_BTD = torch.finfo(plain_BTD.dtype).eps * (plain.abs() + writer.abs() + shift.abs())
    return bool((moved - plain - shift).abs().le(_ROUNDINGS * rounding_BTD).all())


@torch.no_grad()
def _block_output(language_model: LanguageModel, layer: int, hooks: dict[nn.Module, Callable]) -> Tensor:
    """Output of a block for a short text, with `hooks` on some of its modules, `[B, T, D]`."""
    outputs: list[Tensor] = []
    ids_BT = torch.tensor([language_model.chat.plain_ids(_TEXT)], device=language_model.device)
    with ExitStack() as stack:
        for module, act in hooks.items():
            stack.callback(module.register_forward_hook(act).remove)
        stack.callback(hook(language_model, Site(layer), outputs.append).remove)
        language_model.decoder(input_ids=ids_BT, use_cache=False)
    return outputs[0]
