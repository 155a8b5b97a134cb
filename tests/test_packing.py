"""Prefix trees: rows that begin alike share tokens, and no row can tell."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from heal.models.language_model import LanguageModel, token_batches
from heal.models.packing import MIN_SHARED, forest, pack, tree_nodes
from heal.randomness import generator
from tests.cases import case
from tests.closeness import assert_near
from tests.students import learn, student
from tests.tiny import CPU, load_architecture

BEGIN = list(range(20, 32))
ROWS = [
    [*BEGIN, 40, 41, 42, 50, 51],
    [*BEGIN, 40, 41, 42, 60],
    [*BEGIN, 70],
    [*BEGIN, 40, 41, 42, 50, 51],  # said twice
    [99, 98, 97],
    BEGIN,
]


def rows_of(seed: int) -> list[list[int]]:
    """Rows of random ids, some of which begin as earlier ones do."""
    source = generator("rows", seed)
    rows: list[list[int]] = []
    for index in range(8):
        length = int(torch.randint(1, 30, (1,), generator=source))
        begin = rows[index // 2][: MIN_SHARED + index] if index % 3 else []
        rows.append([*begin, *torch.randint(3, 200, (length,), generator=source).tolist()])
    return rows


def alone(language_model: LanguageModel, row: Sequence[int]) -> torch.Tensor:
    return language_model.decoder(input_ids=torch.tensor([list(row)]), use_cache=False).last_hidden_state[0]


@pytest.fixture(scope="module", params=["llama", "qwen2", "qwen3", "opt", "gemma2", "gemma3_text", "gemma3_nested"])
def wide(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    """One tiny model for each architecture, whose sliding window, if any, is as long as its context."""
    model = load_architecture(request.param, tmp_path_factory.mktemp(request.param))
    config = model.model.config.get_text_config()
    if getattr(config, "sliding_window", None):
        config.sliding_window = config.max_position_embeddings
        for block in model.blocks:
            if getattr(block.self_attn, "sliding_window", None):
                block.self_attn.sliding_window = config.max_position_embeddings
        model.check_supported()
    return model


@torch.no_grad()
def test_in_a_tree_every_row_has_the_hidden_states_that_it_has_alone(wide: LanguageModel):
    for rows in (ROWS, rows_of(0), rows_of(1)):
        assert wide.longest_shared == 1024
        trees = wide.trees(rows)
        assert max(map(len, trees)) > 1
        packed = wide.pack(rows, trees)
        h_MD = wide.hidden_states(packed)
        for row, nodes in zip([row for tree in trees for row in tree], packed.nodes, strict=True):
            assert_near(h_MD[nodes], alone(wide, rows[row]))


def test_a_tree_gives_the_gradients_of_its_rows_one_by_one(tiny_folder: Path):
    model, accumulator = student(tiny_folder)
    learn(accumulator, 0)
    weight = torch.randn(32, generator=generator("weight"))

    def gradients(states: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        loss = torch.stack([(h_TD[-4:] @ weight).square().sum() for h_TD in states]).sum()
        return list(torch.autograd.grad(loss, list(accumulator.trainable().values())))

    packed = model.pack(ROWS, [range(len(ROWS))])
    h_MD = model.hidden_states(packed)
    shared = gradients([h_MD[nodes] for nodes in packed.nodes])
    single = gradients([alone(model, row) for row in ROWS])
    for a, b in zip(shared, single, strict=True):
        assert (a - b).norm() < 1e-4 * b.norm()


def test_what_is_shared_stands_once():
    (tree,) = forest(ROWS[:4], 1000, 1000)
    assert tree_nodes(ROWS, tree) == len(BEGIN) + 3 + 2 + 1 + 1
    packed = pack(ROWS, [tree], 0, torch.float32, CPU)
    assert packed.ids_BN.shape == (1, tree_nodes(ROWS, tree))
    assert packed.mask_B1NN is not None


def test_rows_that_do_not_begin_alike_are_padded_and_need_no_mask():
    rows = [[1, 2, 3], [1, 2, 4, 5], [7]]
    trees = forest(rows, 1000, 1000)
    assert sorted(trees) == [[0], [1], [2]]
    packed = pack(rows, [[0], [1], [2]], 9, torch.float32, CPU)
    assert packed.inputs().keys() == {"input_ids"}
    assert packed.ids_BN.tolist() == [[1, 2, 3, 9], [1, 2, 4, 5], [7, 9, 9, 9]]


def test_a_plan_holds_every_row_once(tiny: LanguageModel):
    for seed in range(5):
        for budget in [1, 60, 10_000]:
            with case(seed, budget):
                plan = tiny.plan(rows_of(seed), budget)
                assert sorted(row for batch in plan for tree in batch for row in tree) == list(range(8))


def test_rows_too_long_for_a_sliding_window_stay_alone(architectures: dict[str, LanguageModel]):
    for name, tiny in architectures.items():
        with case(name):
            window = getattr(tiny.model.config.get_text_config(), "sliding_window", None)
            alone_all = max(map(len, tiny.trees(ROWS))) == 1
            assert alone_all == (window is not None and window < min(map(len, ROWS[:4])))


def test_a_tree_grows_until_attention_between_branches_costs_more_than_sharing_saves():
    for pairs, sizes in [(1e9, [6]), (500.0, [3, 3]), (100.0, [1] * 6)]:
        with case(pairs, sizes):
            rows = [[*range(40), *range(100 + 60 * index, 160 + 60 * index)] for index in range(6)]
            assert sorted(len(tree) for tree in forest(rows, 10_000, pairs)) == sizes


def test_a_row_much_shorter_than_a_batch_s_longest_begins_a_new_batch():
    assert token_batches([100, 90, 61, 59, 30, 20], 10_000) == [[0, 1, 2], [3], [4, 5]]


def test_an_attention_kernel_that_takes_no_mask_shares_nothing(tiny_folder: Path):
    model, _ = student(tiny_folder)
    model.model.config._attn_implementation = "flash_attention_2"
    model.shares = model._shares_exactly()
    assert (model.shares, model.longest_shared) == (False, 0)
