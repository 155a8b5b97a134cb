"""topk_clusters: `h + c C_k`, `C` the centroids of k-means on the paired differences, `k = argmax_k cos(h, C_k)`.

A persona shows in more than one way, depending on the context. The differences `h+_i - h-_i` are clustered by
direction (k-means on the unit differences), a centroid is the mean of its cluster's differences, and each position
takes the one that it already lies nearest to. One cluster is mean_diff. With `normalize`, centroids have length 1;
with `centre`, the cosine is taken from the mean of both sets, and not from the origin, where all activations share
their mean.
"""

import torch
from torch import Tensor

from heal.steering.fitting import cluster_labels
from heal.steering.method import Method, State, contrast, unit


def fit(positive_PD: Tensor, negative_PD: Tensor, clusters: int, normalize: bool) -> State:
    """The mean contrast `v` and the centroids `[K, D]`."""
    difference_PD = positive_PD.double() - negative_PD.double()
    direction_PD = difference_PD / difference_PD.norm(dim=1, keepdim=True).clamp_min(1e-300)
    differences = [contrast(positive_PD[rows], negative_PD[rows]) for rows in cluster_labels(direction_PD, clusters)]
    centroid_KD = torch.stack([unit(v_D) if normalize else v_D for v_D in differences])
    return {"v": contrast(positive_PD, negative_PD).float(), "centroids": centroid_KD.float()}


def apply(h_BTD: Tensor, state: State, c_B11: Tensor) -> Tensor:
    """Adds to each position the centroid that is nearest to it in cosine."""
    centroid_KD = state["centroids"]
    length_K1 = centroid_KD.norm(dim=1, keepdim=True).clamp_min(torch.finfo(centroid_KD.dtype).tiny)
    nearest_BT = (h_BTD @ (centroid_KD / length_K1).T).argmax(-1)  # the norm of h is the same for all of them
    return h_BTD + c_B11 * centroid_KD[nearest_BT]


METHOD = Method("topk_clusters", fit, apply, tensors=("centroids",), settings=("clusters", "normalize", "centre"))
