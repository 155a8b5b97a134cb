"""The activation methods by the name that `steer.method` calls them: one file each."""

from heal.steering.method import Method
from heal.steering.methods.angular import ANGULAR
from heal.steering.methods.chars import CHARS
from heal.steering.methods.cosine_gated import COSINE_GATED
from heal.steering.methods.directional_ablation import DIRECTIONAL_ABLATION
from heal.steering.methods.linear_act import LINEAR_ACT
from heal.steering.methods.mean_diff import MEAN_DIFF
from heal.steering.methods.pca import PCA
from heal.steering.methods.spherical import SPHERICAL
from heal.steering.methods.sspace import SSPACE
from heal.steering.methods.sspace_ablate import SSPACE_ABLATE
from heal.steering.methods.sspace_damp_amp import SSPACE_DAMP_AMP
from heal.steering.methods.super_sspace import SUPER_SSPACE
from heal.steering.methods.topk_clusters import TOPK_CLUSTERS

METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        MEAN_DIFF,
        PCA,
        DIRECTIONAL_ABLATION,
        COSINE_GATED,
        SPHERICAL,
        ANGULAR,
        TOPK_CLUSTERS,
        LINEAR_ACT,
        CHARS,
        SSPACE,
        SSPACE_ABLATE,
        SSPACE_DAMP_AMP,
        SUPER_SSPACE,
    )
}
