"""kl_rev: `KL(student || reference) = sum_v p (log p - log q)`, mode-seeking.

`p` is the student, `q` the reference. It suppresses what the reference finds improbable, and costs nothing where the
student is surer than the reference. `d KL / d logit = p (log p - log q - KL)`.
"""

import torch
from torch import Tensor

from heal.divergence import floored, kl_divergence, kl_from_logprobs
from heal.healing.divergences import Divergence


def per_position(student_NV: Tensor, reference_NV: Tensor) -> Tensor:
    """`KL(student || reference)`, `[N]`."""
    return kl_divergence(student_NV, reference_NV)


def into_gradients(logp_NV: Tensor, p_NV: Tensor, reference_NV: Tensor) -> Tensor:
    """The same; `reference_NV` becomes its gradient in the student's logits."""
    logq_NV = torch.log_softmax(reference_NV, dim=-1)
    logp_NV, logq_NV = floored(logp_NV, logq_NV)
    kl_N = kl_from_logprobs(logp_NV, logq_NV)
    torch.mul(logp_NV.sub_(logq_NV).sub_(kl_N[:, None]), p_NV, out=reference_NV)
    return kl_N


DIVERGENCE = Divergence("kl_rev", "KL(student \N{PARALLEL TO} {reference})", per_position, into_gradients)
