"""pca: `h + c v`, `v` the first right singular vector of the centred paired differences `d_i = h+_i - h-_i`.

The direction along which the pairs differ most from each other: where the personas bring the trait out strongly in
one context and weakly in another, that is the trait, however large the part that all pairs share. A singular vector
has no sign: the pairs vote, each with the sign of `d_i . v`.

Representation engineering (arXiv 2310.01405).
"""

from torch import Tensor

from heal.steering.fitting import first_component
from heal.steering.method import Method, State
from heal.steering.methods.mean_diff import apply


def fit(positive_PD: Tensor, negative_PD: Tensor) -> State:
    """`v`, of length 1."""
    return {"v": first_component(positive_PD.double() - negative_PD.double()).float()}


METHOD = Method("pca", fit, apply, origin_free=True, in_float32=False)
