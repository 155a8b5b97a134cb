"""kl_fwd: `KL(reference || student) = sum_v q (log q - log p)`, mass-covering.

`p` is the student, `q` the reference. It costs much where the student has lost what the reference finds probable.
`d KL / d logit = p - q`.
"""

import torch
from torch import Tensor

from heal.divergence import floored, kl_divergence, kl_from_logprobs
from heal.healing.divergences import Divergence


def per_position(student_NV: Tensor, reference_NV: Tensor) -> Tensor:
    """`KL(reference || student)`, `[N]`."""
    return kl_divergence(reference_NV, student_NV)


def into_gradients(logp_NV: Tensor, p_NV: Tensor, reference_NV: Tensor) -> Tensor:
    """The same; `reference_NV` becomes its gradient in the student's logits."""
    logq_NV = torch.log_softmax(reference_NV, dim=-1)
    kl_N = kl_from_logprobs(*floored(logq_NV, logp_NV))
    torch.sub(p_NV, logq_NV.exp_(), out=reference_NV)
    return kl_N


DIVERGENCE = Divergence("kl_fwd", "KL({reference} \N{PARALLEL TO} student)", per_position, into_gradients)
