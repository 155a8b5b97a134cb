"""Caches that grow in place hold what transformers' own caches hold."""

import torch
from torch import Tensor
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from heal.models.growing import GrowingLayer, GrowingWindow
from heal.randomness import generator
from tests.cases import case


def test_whatever_is_read_selected_or_cropped_both_caches_return_the_same_tensors():
    """Random sequences of reading 1 to 90 tokens, selecting rows (some twice), repeating and cropping."""
    for window, seed in ((None, 0), (None, 1), (7, 2), (40, 3), (200, 4)):
        source = generator("cache", seed)

        def drawn(count: int, source: torch.Generator = source) -> int:
            return int(torch.randint(count, (1,), generator=source))

        def states(rows: int, tokens: int, source: torch.Generator = source) -> Tensor:
            return torch.randn(rows, 2, tokens, 3, generator=source)

        ours = GrowingLayer() if window is None else GrowingWindow(window)
        theirs = DynamicLayer() if window is None else DynamicSlidingWindowLayer(window)
        rows = 4
        for step in range(120):
            with case(window, seed, step):
                tokens = 1 if drawn(4) else 1 + drawn(90)
                k, v = states(rows, tokens), states(rows, tokens)
                for one, other in zip(ours.update(k, v), theirs.update(k, v), strict=True):
                    assert torch.equal(one, other)
                what = drawn(10)
                if what == 0:
                    rows = 1 + drawn(5)
                    index = torch.randint(ours.keys.shape[0], (rows,), generator=source)
                    ours.reorder_cache(index)
                    theirs.reorder_cache(index)
                elif what == 1 and window is None:
                    ours.crop(-1)
                    theirs.crop(-1)
                assert torch.equal(ours.keys, theirs.keys)
                assert ours.get_mask_sizes(3) == theirs.get_mask_sizes(3)


def test_a_step_writes_its_own_keys_and_copies_no_others():
    layer = GrowingLayer()
    layer.update(torch.randn(2, 1, 5, 3), torch.randn(2, 1, 5, 3))
    before = layer.keys.data_ptr()
    for _ in range(60):
        layer.update(torch.randn(2, 1, 1, 3), torch.randn(2, 1, 1, 3))
    assert layer.keys.data_ptr() == before
    assert layer.keys.shape == (2, 1, 65, 3)
