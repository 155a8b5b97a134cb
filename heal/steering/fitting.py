"""What several methods fit with: principal directions, clusters, and the modes of weights.

Libraries do the work, in float64 and on one thread, so that no result depends on the number of threads. They are
imported where they are used: they take seconds to import, and most methods need none of them.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from heal.steering.method import NoDirection

_DEAD = 1e-6  # of the largest singular value; modes below are rounding
_FLAT = 1e-9  # of the size of the vectors; a spread below is rounding


@contextmanager
def one_thread() -> Iterator[None]:
    """One thread for torch, BLAS and scikit-learn inside the context."""
    from threadpoolctl import threadpool_limits

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1):
            yield
    finally:
        torch.set_num_threads(before)


def first_component(x_PD: Tensor) -> Tensor:
    """First right singular vector of the centred rows, `[D]`, float64, turned so that most rows lie along it.

    The rows vote with the sign of their own (not centred) projection; where the votes are even, their sum decides.

    Raises:
        NoDirection: the rows are all the same.
    """
    x_PD = x_PD.double()
    with one_thread():
        _, spread_K, right_KD = torch.linalg.svd(x_PD - x_PD.mean(0), full_matrices=False)
    if not spread_K[0] > _FLAT * x_PD.norm():
        raise NoDirection("all pairs differ in the same way, so their differences have no principal component")
    projected_P = x_PD @ right_KD[0]
    votes = projected_P.sign().sum()
    return -right_KD[0] if (votes if votes != 0 else projected_P.sum()) < 0 else right_KD[0]


def cluster_labels(x_PD: Tensor, clusters: int) -> list[Tensor]:
    """Indices of the rows of each cluster of k-means; fewer clusters where there are fewer distinct rows."""
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    with one_thread(), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer distinct rows than clusters
        label_P = KMeans(clusters, n_init=10, random_state=0).fit(x_PD.double().numpy()).labels_
    return [torch.from_numpy((label_P == label).nonzero()[0]) for label in sorted(set(label_P.tolist()))]


def coupling(cost_IJ: Tensor, source_I: Tensor, target_J: Tensor, entropy: float) -> Tensor:
    """Entropic optimal transport between two distributions, `[I, J]`, float64, by Sinkhorn in the log domain.

    Args:
        cost_IJ: cost of each pair.
        source_I, target_J: masses; each sums to 1.
        entropy: regularisation in units of the mean cost.

    Returns:
        the plan; its rows sum to `source_I` exactly, its columns to `target_J` up to 1e-8, or as near as 2000
        iterations come (1e-4 where two plans cost almost the same).
    """
    scale = float(cost_IJ.mean())
    if scale == 0 or 1 in cost_IJ.shape:
        return source_I[:, None] * target_J  # the only coupling there is, or one as good as any other
    import ot

    with one_thread():
        plan = ot.sinkhorn(
            source_I.numpy(),
            target_J.numpy(),
            (cost_IJ / scale).numpy(),
            entropy,
            method="sinkhorn_log",
            numItermax=2000,
            stopThr=1e-8,
            warn=False,
        )
    return torch.from_numpy(plan)


def modes(gram_DD: Tensor) -> tuple[Tensor, Tensor]:
    """Left singular vectors `[D, K]` and singular values `[K]` of a weight, from its Gram matrix `W W^T`.

    Modes whose singular value is under a millionth of the largest are left out. Computed where the Gram matrix is, in
    float64; what comes out is on the CPU.
    """
    with one_thread():
        square_D, u_DD = (found.cpu() for found in torch.linalg.eigh(gram_DD.double()))
    s_D = square_D.clamp_min(0).sqrt()
    kept = s_D > _DEAD * s_D[-1]
    if not kept.any():
        raise NoDirection("the weights are all zero")
    return u_DD[:, kept].flip(1), s_D[kept].flip(0)
