"""super_sspace: sspace at the block's output, in one basis of the residual stream for the whole band.

The basis is what the blocks of the band write and read together: the eigenvectors and (as `S^2`) eigenvalues of the
sum of `W W^T` over all Linears that write to the residual stream and of `W^T W` over all that read from it. The
contrast `d` is each block's own: `x = h U / sqrt(S)`, `x <- x + c |cos(x, d)| d`. The gains of the norms between the
stream and the Linears are left out of the account.
"""

from heal.steering.method import Method
from heal.steering.methods.sspace import apply, fit

METHOD = Method("super_sspace", fit, apply, tensors=("d", "reads", "bias"), basis="band")
