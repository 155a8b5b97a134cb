"""The methods that fit more than a direction: transport maps, clusters, and bases of weights."""

import math

import numpy
import pytest
import torch
from torch import Tensor

from heal.steering.fitting import cluster_labels, coupling, first_component, modes
from heal.steering.method import NoDirection, State
from heal.steering.methods import METHODS
from tests.cases import case
from tests.planted import PAIRS, WIDTH, cosine, draw, fitted, on_plants, planted_pairs, positions, shifted

# Transport by coordinate


def test_linear_act_is_the_least_squares_line_through_the_sorted_samples_and_goes_a_share_of_the_way():
    target_PD, source_PD = draw(PAIRS, 3) ** 3, draw(PAIRS, 3, seed=1)
    state = fitted("linear_act", target_PD, source_PD)
    for k in range(3):
        slope, offset = numpy.polyfit(numpy.sort(source_PD[:, k].numpy()), numpy.sort(target_PD[:, k].numpy()), 1)
        assert float(state["slope"][k]) == pytest.approx(slope, rel=1e-4)
        assert float(state["offset"][k]) == pytest.approx(offset, abs=1e-4)

    slope_D, offset_D = draw(WIDTH).abs() + 0.1, draw(WIDTH, seed=1)
    source_PD = draw(PAIRS, WIDTH, seed=2)
    order_P = torch.randperm(PAIRS, generator=torch.Generator().manual_seed(3))
    state = fitted("linear_act", (slope_D * source_PD + offset_D)[order_P], source_PD)
    torch.testing.assert_close(state["slope"], slope_D)
    torch.testing.assert_close(state["offset"], offset_D)
    carried = shifted("linear_act", state, source_PD[None], 1.0)[0]
    torch.testing.assert_close(carried, slope_D * source_PD + offset_D)

    source_PD, target_PD = draw(PAIRS, WIDTH), -3 * draw(PAIRS, WIDTH)
    source_PD[:, 0], target_PD[:, 1] = 7.0, 7.0
    state = fitted("linear_act", target_PD, source_PD)
    assert (state["slope"] >= 0).all()
    assert (float(state["slope"][0]), float(state["slope"][1])) == (1.0, 0.0)
    torch.testing.assert_close(state["offset"][0], target_PD[:, 0].mean() - 7)

    for c in [0.25, 1.5]:
        with case(c):
            state, h_BTD = on_plants("linear_act"), positions()
            whole = shifted("linear_act", state, h_BTD, 1.0) - h_BTD
            torch.testing.assert_close(shifted("linear_act", state, h_BTD, c) - h_BTD, c * whole, atol=1e-4, rtol=1e-4)


# Clusters


def test_one_cluster_is_mean_diff_bit_for_bit():
    for name in ["chars", "topk_clusters"]:
        with case(name):
            one, plain = on_plants(name, clusters=1), on_plants("mean_diff")
            for c in (0.7, -3.0):
                expected = shifted("mean_diff", plain, positions(), c)
                assert torch.equal(shifted(name, one, positions(), c), expected)


def two_kinds() -> tuple[Tensor, Tensor, list[Tensor], list[Tensor]]:
    """Pairs of two kinds that lie far apart and move in different directions; where they start and how they move."""
    starts = [20 * torch.eye(WIDTH)[0], -20 * torch.eye(WIDTH)[0]]
    moves = [3 * torch.eye(WIDTH)[0] + torch.eye(WIDTH)[1], -2 * torch.eye(WIDTH)[0] + 2 * torch.eye(WIDTH)[2]]
    count = PAIRS // 3
    kinds = [0] * count + [1] * (PAIRS - count)
    negative_PD = torch.stack([starts[kind] for kind in kinds]) + 0.1 * draw(PAIRS, WIDTH)
    positive_PD = negative_PD + torch.stack([moves[kind] for kind in kinds]) + 0.01 * draw(PAIRS, WIDTH, seed=1)
    return positive_PD, negative_PD, starts, moves


def test_chars_is_the_sum_over_all_pairs_of_clusters_and_moves_each_position_as_its_own_cluster_moves():
    _, positive_PD, negative_PD = planted_pairs()
    state = fitted("chars", positive_PD, negative_PD, clusters=3, entropy=0.2)
    sources, targets = (cluster_labels(x_PD, 3) for x_PD in (negative_PD, positive_PD))
    a = [negative_PD[rows].double().mean(0) for rows in sources]
    b = [positive_PD[rows].double().mean(0) for rows in targets]
    cost = torch.stack([torch.stack([(x - y).square().sum() for y in b]) for x in a])
    masses = [torch.tensor([len(rows) / PAIRS for rows in side]).double() for side in (sources, targets)]
    plan = coupling(cost, *masses, 0.2)
    for h_D in positions()[0]:
        distances = torch.stack([(h_D - x).square().sum() for x in a])
        kernel = torch.exp(-distances / (2 * distances.median()))
        gates = plan * kernel[:, None] / (plan * kernel[:, None]).sum()
        expected = sum(gates[i, j] * (b[j] - a[i]) for i in range(3) for j in range(3))
        found = shifted("chars", state, h_D[None, None], 1.0)[0, 0] - h_D
        torch.testing.assert_close(found.double(), expected, atol=1e-4, rtol=1e-4)

    positive_PD, negative_PD, starts, moves = two_kinds()
    state = fitted("chars", positive_PD, negative_PD, clusters=2, entropy=0.05)
    h_1TD = torch.stack(starts)[None]
    found = shifted("chars", state, h_1TD, 1.0) - h_1TD
    torch.testing.assert_close(found[0], torch.stack(moves), atol=0.1, rtol=0)


def test_topk_clusters_adds_the_nearest_centroid_and_clusters_are_by_direction_and_not_by_length():
    positive_PD, negative_PD, _, moves = two_kinds()
    state = fitted("topk_clusters", positive_PD, negative_PD, clusters=2)
    h_1TD = torch.stack([5 * moves[0], 0.1 * moves[1]])[None]
    torch.testing.assert_close(
        shifted("topk_clusters", state, h_1TD, 1.0) - h_1TD, torch.stack(moves)[None], atol=0.02, rtol=0
    )
    assert len(state["centroids"]) == 2
    normalized = fitted("topk_clusters", positive_PD, negative_PD, clusters=2, normalize=True)["centroids"]
    torch.testing.assert_close(normalized.norm(dim=1), torch.ones(2))

    axes, lengths_P1 = torch.eye(WIDTH)[:2], torch.linspace(0.1, 10, PAIRS)[:, None]
    difference_PD = lengths_P1 * axes[torch.arange(PAIRS) % 2]
    centroids = fitted("topk_clusters", difference_PD, torch.zeros(PAIRS, WIDTH), clusters=2)["centroids"]
    directions = (centroids / centroids.norm(dim=1, keepdim=True)).abs()
    torch.testing.assert_close(directions.sort(0).values.sum(0), torch.eye(WIDTH)[:2].sum(0), atol=1e-5, rtol=0)

    rows = torch.eye(WIDTH)[:2].repeat(5, 1)
    assert sorted(sorted(label.tolist()) for label in cluster_labels(rows, 4)) == [[0, 2, 4, 6, 8], [1, 3, 5, 7, 9]]


def test_a_coupling_has_the_masses_that_it_couples_and_is_as_blurred_as_its_entropy():
    for entropy in [1e-3, 0.1, 10.0]:
        for scale in [1e-3, 1e4]:
            with case(entropy, scale):
                cost = scale * draw(4, 3).abs().double()
                source, target = torch.arange(1, 5).double() / 10, torch.ones(3).double() / 3
                plan = coupling(cost, source, target, entropy)
                assert (plan >= 0).all()
                torch.testing.assert_close(plan.sum(1), source, atol=1e-6, rtol=0)
                torch.testing.assert_close(plan.sum(0), target, atol=1e-4 if entropy < 0.1 else 1e-6, rtol=0)

    cost, masses = 1 - torch.eye(3).double(), torch.ones(3).double() / 3
    torch.testing.assert_close(coupling(cost, masses, masses, 0.01), torch.eye(3).double() / 3, atol=1e-6, rtol=0)
    torch.testing.assert_close(
        coupling(cost, masses, masses, 1e3), torch.full((3, 3), 1 / 9).double(), atol=1e-3, rtol=0
    )


def test_rows_that_are_all_the_same_have_no_component():
    with pytest.raises(NoDirection):
        first_component(draw(WIDTH).expand(10, WIDTH))


# Bases of weights


def oracle(weight_DI: Tensor, bias_D: Tensor, y_D: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Coordinates of an output by a plain SVD, with the modes and their sizes."""
    u_DK, s_K, _ = torch.linalg.svd(weight_DI.double(), full_matrices=False)
    return (y_D.double() - bias_D.double()) @ u_DK / s_K.sqrt(), u_DK, s_K


def weights() -> tuple[Tensor, Tensor, Tensor]:
    """The weight and bias that `fitted` gives, and the unit contrast in the weight's basis."""
    weight_DI, bias_D = draw(WIDTH, 2 * WIDTH, seed=6), draw(WIDTH, seed=7)
    one, other = persona_means(weight_DI, bias_D)
    return weight_DI, bias_D, (one - other) / (one - other).norm()


def persona_means(weight_DI: Tensor, bias_D: Tensor) -> list[Tensor]:
    """The mean coordinates of the planted activations, positive and negative."""
    return [oracle(weight_DI, bias_D, h_PD)[0].mean(0) for h_PD in planted_pairs()[1:]]


def test_the_s_space_methods_are_their_equations_in_the_basis_that_they_are_given():
    for c in [1.5, -0.5]:
        with case(c):
            weight_DI, bias_D, d_K = weights()
            y_BTD = positions()
            x, u_DK, s_K = oracle(weight_DI, bias_D, y_BTD)
            cos = torch.cosine_similarity(x, d_K, dim=-1)[..., None]
            further_K = d_K * sum(persona_means(weight_DI, bias_D)).sign()
            expected = {
                "sspace": x + c * cos.abs() * d_K,
                "sspace_ablate": x - (x @ d_K)[..., None] * d_K + c * d_K,
                "sspace_damp_amp": x * (c * further_K).exp(),
            }
            for name, moved in expected.items():
                lifted = (moved * s_K.sqrt()) @ u_DK.T + bias_D
                torch.testing.assert_close(
                    shifted(name, on_plants(name), y_BTD, c).double(), lifted, atol=1e-3, rtol=1e-3
                )

    weight_DI, _, _ = weights()
    none_D, h_BTD = torch.zeros(WIDTH), positions()
    one, other = persona_means(weight_DI, none_D)
    d_K = (one - other) / (one - other).norm()
    x, u_DK, s_K = oracle(weight_DI, none_D, h_BTD)
    moved = x + 1.5 * torch.cosine_similarity(x, d_K, dim=-1).abs()[..., None] * d_K
    lifted = (moved * s_K.sqrt()) @ u_DK.T
    found = shifted("super_sspace", on_plants("super_sspace"), h_BTD, 1.5)
    torch.testing.assert_close(found.double(), lifted, atol=1e-3, rtol=1e-3)


def low_rank(name: str, rank: int) -> tuple[State, Tensor]:
    """A method fitted to a weight of low rank, and what projects on what that weight cannot say."""
    weight_DI = draw(WIDTH, rank, seed=6) @ draw(rank, 2 * WIDTH, seed=7)
    gram_DD = weight_DI.double() @ weight_DI.double().T
    _, positive_PD, negative_PD = planted_pairs()
    state = METHODS[name].fit(positive_PD, negative_PD, gram_DD=gram_DD, bias_D=None)
    u_DK, _, _ = torch.linalg.svd(weight_DI, full_matrices=False)
    return state, torch.eye(WIDTH) - u_DK[:, :rank] @ u_DK[:, :rank].T


def test_modes_are_those_of_the_weight_and_what_lies_outside_of_them_stays_as_it_is():
    weight_DI = draw(WIDTH, 5) @ draw(5, 40, seed=1)
    u_DK, s_K = modes(weight_DI.double() @ weight_DI.double().T)
    assert u_DK.shape == (WIDTH, 5)
    torch.testing.assert_close(s_K, torch.linalg.svdvals(weight_DI.double())[:5])
    torch.testing.assert_close(u_DK @ u_DK.T @ weight_DI.double(), weight_DI.double(), atol=1e-5, rtol=0)

    for name in ["sspace", "sspace_ablate", "sspace_damp_amp", "super_sspace"]:
        with case(name):
            state, outside_DD = low_rank(name, 5)
            y_BTD = positions()
            found = shifted(name, state, y_BTD, 2.0)
            assert (found - y_BTD).norm() > 0.1
            torch.testing.assert_close(found @ outside_DD, y_BTD @ outside_DD, atol=1e-3, rtol=0)


def test_an_ablation_in_s_space_sets_the_component_and_no_mode_is_amplified_beyond_the_clamp():
    weight_DI, bias_D, d_K = weights()
    for c in (0.0, 2.0):
        found = shifted("sspace_ablate", on_plants("sspace_ablate"), positions(), c)
        components = oracle(weight_DI, bias_D, found)[0] @ d_K
        torch.testing.assert_close(components, torch.full_like(components, c), atol=1e-4, rtol=0)

    weight_DI, bias_D, d_K = weights()
    further_K = d_K * sum(persona_means(weight_DI, bias_D)).sign()
    before = oracle(weight_DI, bias_D, positions())[0]
    after = oracle(weight_DI, bias_D, shifted("sspace_damp_amp", on_plants("sspace_damp_amp"), positions(), 1e4))[0]
    rounding = 1e-5 * float(before.abs().max())  # of the float32 positions that were shifted
    torch.testing.assert_close(after, before * (4 * further_K.sign()).exp(), rtol=1e-3, atol=rounding)
    assert math.isfinite(float(after.sum()))


def test_the_direction_of_an_s_space_method_is_the_contrast_where_the_weight_says_everything():
    _, positive_PD, negative_PD = planted_pairs()
    for name in ("sspace", "sspace_ablate", "sspace_damp_amp", "super_sspace"):
        assert cosine(fitted(name, positive_PD, negative_PD)["v"], positive_PD.mean(0) - negative_PD.mean(0)) > 0.9999
