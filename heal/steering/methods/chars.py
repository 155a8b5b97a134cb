"""chars: `h + c sum_ij g_ij(h) (b_j - a_i)`, `a` the clusters of the negative activations, `b` of the positive ones.

One direction is too few where a concept takes several forms. `K` source and `K` target clusters (k-means) are coupled
by entropic optimal transport `P` on their squared distances, masses being cluster sizes, and each position follows
the translations of the source clusters that it is near to:

    g_ij(h) = P_ij k(h, a_i) / sum_pq P_pq k(h, a_p),  k(h, a) = exp(-|h - a|^2 / (2 s^2)),

with `s^2` the median over `i` of `|h - a_i|^2`, position by position. Summed over `j` first, a source cluster moves
by one vector, `sum_j P_ij (b_j - a_i) / sum_j P_ij`. With one cluster, `g = 1` and this is mean_diff exactly.

CHaRS (arXiv 2603.02237).
"""

import torch
from torch import Tensor

from heal.steering.fitting import cluster_labels, coupling
from heal.steering.method import Method, State, contrast


def fit(positive_PD: Tensor, negative_PD: Tensor, clusters: int, entropy: float) -> State:
    """The mean contrast `v`, and of each source cluster its centre, mass and shift: `[K, D]`, `[K]`, `[K, D]`."""
    source_PD, target_PD = negative_PD.double(), positive_PD.double()
    sources, targets = cluster_labels(source_PD, clusters), cluster_labels(target_PD, clusters)
    a_ID = torch.stack([source_PD[rows].mean(0) for rows in sources])
    b_JD = torch.stack([target_PD[rows].mean(0) for rows in targets])
    mass_I, mass_J = (
        torch.tensor([len(rows) / len(source_PD) for rows in side], dtype=torch.float64) for side in (sources, targets)
    )
    plan_IJ = coupling(torch.cdist(a_ID, b_JD).square(), mass_I, mass_J, entropy)
    mass_I = plan_IJ.sum(1)
    shift_ID = (plan_IJ[..., None] * (b_JD - a_ID[:, None])).sum(1) / mass_I[:, None]
    return {
        "v": contrast(positive_PD, negative_PD).float(),
        "sources": a_ID.float(),
        "masses": mass_I.float(),
        "shifts": shift_ID.float(),
    }


def apply(h_BTD: Tensor, state: State, c_B11: Tensor) -> Tensor:
    """Adds each position's own mixture of the source clusters' shifts."""
    distance_BTK = torch.cdist(h_BTD, state["sources"], compute_mode="donot_use_mm_for_euclid_dist").square()
    width_BT1 = distance_BTK.median(-1, keepdim=True).values.clamp_min(torch.finfo(h_BTD.dtype).tiny)
    gate_BTK = torch.softmax(state["masses"].log() - distance_BTK / (2 * width_BT1), dim=-1)
    return h_BTD + c_B11 * (gate_BTK @ state["shifts"])


METHOD = Method(
    "chars",
    fit,
    apply,
    tensors=("sources", "masses", "shifts"),
    settings=("clusters", "entropy"),
    origin_free=True,
)
