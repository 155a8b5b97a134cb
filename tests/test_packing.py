"""Prefix trees: rows that begin alike share tokens, and no row can tell."""

import math
from collections.abc import Sequence
from itertools import combinations, pairwise, product
from pathlib import Path

import torch

from heal.models.language_model import LanguageModel, token_batches
from heal.models.packing import MIN_SHARED, forest, pack, shared, tree_nodes
from heal.models.supported import check_supported, shares_exactly
from heal.randomness import generator
from tests.cases import case
from tests.closeness import assert_near
from tests.students import learn, student
from tests.tiny import ARCHITECTURES, CPU, load_architecture

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


def widened(language_model: LanguageModel) -> LanguageModel:
    """The model with its sliding window, if any, as long as its context."""
    config = language_model.model.config.get_text_config()
    if getattr(config, "sliding_window", None):
        config.sliding_window = config.max_position_embeddings
        for block in language_model.blocks:
            if getattr(block.self_attn, "sliding_window", None):
                block.self_attn.sliding_window = config.max_position_embeddings
        check_supported(language_model)
    return language_model


@torch.no_grad()
def test_in_a_tree_every_row_has_the_hidden_states_that_it_has_alone(tmp_path: Path):
    for name in ARCHITECTURES:
        wide = widened(load_architecture(name, tmp_path / name))
        assert wide.longest_shared == 1024, name
        for rows in (ROWS, rows_of(0), rows_of(1)):
            with case(name, rows):
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
    packed = pack(ROWS, [tree], 0, CPU)
    assert packed.ids_BN.shape == (1, tree_nodes(ROWS, tree))
    assert packed.end_BN is not None


def test_rows_that_do_not_begin_alike_are_padded_and_need_no_mask():
    rows = [[1, 2, 3], [1, 2, 4, 5], [7]]
    trees = forest(rows, 1000, 1000)
    assert sorted(trees) == [[0], [1], [2]]
    packed = pack(rows, [[0], [1], [2]], 9, CPU)
    assert packed.inputs(torch.float32).keys() == {"input_ids"}
    assert packed.ids_BN.tolist() == [[1, 2, 3, 9], [1, 2, 4, 5], [7, 9, 9, 9]]


def test_a_plan_holds_every_row_once_and_no_tree_beyond_its_budget(tiny: LanguageModel):
    for seed, budget in product(range(5), (1, 60, 10_000)):
        with case(seed, budget):
            rows = rows_of(seed)
            plan = tiny.plan(rows, budget)
            assert sorted(row for batch in plan for tree in batch for row in tree) == list(range(8))
            assert all(len(tree) == 1 or tree_nodes(rows, tree) <= budget for batch in plan for tree in batch)


def test_rows_too_long_for_a_sliding_window_stay_alone(architectures: dict[str, LanguageModel]):
    for name, model in architectures.items():
        with case(name):
            window = getattr(model.model.config.get_text_config(), "sliding_window", None)
            alone_all = max(map(len, model.trees(ROWS))) == 1
            assert alone_all == (window is not None and window < min(map(len, ROWS[:4])))


def test_no_other_cut_of_the_sorted_rows_into_trees_costs_less():
    for seed, pairs in product(range(4), (1e9, 500.0, 60.0, 10.0)):
        rows = rows_of(seed) if seed else [[*range(20), *range(40 + 30 * i, 70 + 30 * i)] for i in range(8)]

        def cost(tree: Sequence[int], rows=rows, pairs=pairs) -> float:
            nodes = tree_nodes(rows, tree)
            apart = any(shared(rows[a], rows[b]) < MIN_SHARED for a, b in pairwise(tree))
            return math.inf if apart else nodes + nodes**2 / pairs

        order = sorted(range(8), key=lambda row: (rows[row], row))
        cuts = [
            [order[a:b] for a, b in pairwise([0, *places, 8])]
            for n in range(8)
            for places in combinations(range(1, 8), n)
        ]
        with case(seed, pairs):
            assert math.isclose(sum(map(cost, forest(rows, 1000, pairs))), min(sum(map(cost, cut)) for cut in cuts))


def test_a_row_much_shorter_than_a_batch_s_longest_begins_a_new_batch():
    assert token_batches([100, 90, 61, 59, 30, 20], 10_000) == [[0, 1, 2], [3], [4, 5]]


def test_an_attention_kernel_that_takes_no_mask_shares_nothing(tiny_folder: Path):
    model, _ = student(tiny_folder)
    model.model.config._attn_implementation = "flash_attention_2"
    model.shares = shares_exactly(model)
    assert (model.shares, model.longest_shared) == (False, 0)
