"""A base spread over processes: each holds a part of every block, and gathers a block while it computes it (FSDP2).

Spread are the weights of the blocks. What lies outside of them (embedding, final norm, head, the vision tower of a
multimodal model) is whole in every process, as are LoRA, buffers, single numbers and what several blocks share.

A pass gathers from all processes, so all must make the same passes, whatever rows each of them has: before each, all
say what they are about to do. Who has come to the end of its share makes passes of one token until all have; who has
failed between two passes says so, and the others stop there. Who fails inside a pass, or on the way back through it,
where the others wait for its part, ends by itself.
"""

from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from heal import parallel
from heal.models.architectures import blocks_of, decoder_of

# What a process is about to do; what the largest of them says is done. To a pass with gradients the number of times is
# added that it will be gone back through.
_DONE, _PASS, _FAILED = 0, 1, 1000
_GATHERED = 3  # copies of the largest block: as it is gathered, as it is computed with, and the next one on its way


class Spread:
    """The blocks of one model, spread over all processes.

    Attributes:
        blocks: bytes of the weights that are spread.
        here: bytes of this process's part.
        gathered: the most bytes that a pass holds of gathered weights.
        backwards: how often the next pass with gradients is gone back through.
    """

    def __init__(self, model: PreTrainedModel, device: torch.device):
        """Spreads a model without adapters that lies on the CPU; one block at a time is whole on `device`."""
        decoder, blocks = decoder_of(model), blocks_of(model)
        whole = _whole(model, blocks)
        mesh = init_device_mesh(device.type, (parallel.size(),))
        sizes = []
        for block in blocks:
            parts = [weight for weight in block.parameters() if weight not in whole]
            sizes.append(sum(weight.nbytes for weight in parts))
            for weight in parts:
                weight.data = weight.data.contiguous()
            fully_shard(block, mesh=mesh, ignored_params=whole)
        for tensor in (*whole, *model.buffers()):
            tensor.data = tensor.data.to(device)
        fully_shard(decoder, mesh=mesh, ignored_params=set(decoder.parameters()))  # the root, with nothing of its own
        self.blocks, self.gathered = sum(sizes), _GATHERED * max(sizes)
        self.here = sum(weight.to_local().nbytes for weight in blocks.parameters() if isinstance(weight, DTensor))
        self._decoder, self._device = decoder, device
        self._forward = decoder.forward
        decoder.forward = self._pass
        self.backwards = 1
        self._idle = self._stopped = self._learning = False
        parallel.keep_company(self._keep_company)

    def _pass(self, *args: Any, **kwargs: Any) -> Any:
        """The decoder's forward, once all processes are about to make a pass."""
        learning = torch.is_grad_enabled()
        if not self._idle:
            self._learning = learning
            if parallel.largest(_PASS + (self.backwards if learning else 0)) == _FAILED:
                self._stopped = True
                raise parallel.Stopped
        with parallel.at_once():
            return self._forward(*args, **kwargs)

    def _keep_company(self, error: Exception | None) -> None:
        """Makes passes of one token until every process has done its work, or one has failed."""
        stopped, learning, self._stopped, self._learning = self._stopped, self._learning, False, False
        if stopped:
            return
        if error is not None and learning:  # the others may be on their way back
            with parallel.at_once():
                raise error
        self._idle = True
        while _DONE < (said := parallel.largest(_DONE if error is None else _FAILED)) < _FAILED:
            self._idle_pass(said - _PASS)
        self._idle = False

    def _idle_pass(self, backwards: int) -> None:
        """What a pass, and so many ways back, take of this process; no gradients are left."""
        ids_BT = torch.zeros(1, 1, dtype=torch.long, device=self._device)
        with torch.set_grad_enabled(backwards > 0):
            h_BTD = self._decoder(input_ids=ids_BT, use_cache=False).last_hidden_state
        trained = [weight for weight in self._decoder.parameters() if weight.requires_grad]
        with parallel.at_once():
            for left in reversed(range(backwards)):
                torch.autograd.grad(h_BTD.sum(), trained, retain_graph=left > 0, allow_unused=True)


def whole(weight: Tensor) -> Tensor:
    """A weight that may be spread; every process must ask for it at once."""
    return weight.full_tensor() if isinstance(weight, DTensor) else weight


def _whole(model: PreTrainedModel, blocks: nn.ModuleList) -> set[nn.Parameter]:
    """What is not spread: weights outside the blocks, of several blocks, and single numbers, which cannot be parted."""
    inside = set(blocks.modules())
    outside = {weight for part in model.modules() if part not in inside for weight in part.parameters(recurse=False)}
    holders = Counter(weight for block in blocks for weight in set(block.parameters()))
    return outside | {weight for weight, count in holders.items() if count > 1 or weight.ndim == 0}
