"""Contrastive losses: two views of a thing attract each other, all other pairs of the batch repel."""

# From here on written by `make format`: the `__all__` of the modules beside this file.
from lossbook.methods.contrastive.cacr import (
    cacr_from_cosines,
    cacr_loss,
    conditional_weights,
    contrastive_attraction,
    contrastive_repulsion,
    rbf_repulsion,
)
from lossbook.methods.contrastive.contrastive_temperature import (
    hard_info_nce,
    relative_penalties,
    simple_contrastive,
    tolerance,
)
from lossbook.methods.contrastive.decoupled_contrastive import (
    decoupled_contrastive_loss,
    decoupled_contrastive_weighted,
    negative_von_mises_fisher_weights,
)
from lossbook.methods.contrastive.dynamic_bad_pair_mining import (
    LossStatistics,
    PairMemory,
    bad_pairs,
    dynamic_bad_pair_loss,
    loss_statistics,
    pair_memory,
    pair_weights,
    record_losses,
)
from lossbook.methods.contrastive.hypersphere import (
    alignment,
    uniformity,
)
from lossbook.methods.contrastive.infonce import (
    diagonal_cross_entropy,
    info_nce,
    nt_xent,
    two_view_terms,
)
from lossbook.methods.contrastive.logit_dp import (
    logit_dp_gradient,
    logit_dp_influence,
    logit_dp_loss,
    logit_dp_sensitivity,
    logit_dp_weights,
    pair_gradient_norms,
)
from lossbook.methods.contrastive.lvm_med import (
    Edges,
    edge_affinity,
    graph_convolution,
    graph_matching,
    graph_matching_loss,
    local_affinity,
    matching_objective,
    nearest_rows,
)
from lossbook.methods.contrastive.msbreg import (
    brownian,
    centroid_attraction,
    centroids,
    msbreg_loss,
    singular_isotropy,
)
from lossbook.methods.contrastive.mw_auc_retrieval import (
    mann_whitney_from_cosines,
    mann_whitney_from_scores,
    mann_whitney_loss,
)
from lossbook.methods.contrastive.non_contrastive import (
    vic_reg,
)
from lossbook.methods.contrastive.supervised import (
    supervised_contrastive,
)
from lossbook.methods.contrastive.temperature_free_infonce import (
    log_odds,
    temperature_free_info_nce,
)
from lossbook.methods.contrastive.unime_v2 import (
    MinedNegatives,
    judge_alignment,
    judge_alignment_from_cosines,
    judge_score,
    potential_negatives,
    reranker_loss,
    select_negatives,
)

__all__ = [
    "Edges",
    "LossStatistics",
    "MinedNegatives",
    "PairMemory",
    "alignment",
    "bad_pairs",
    "brownian",
    "cacr_from_cosines",
    "cacr_loss",
    "centroid_attraction",
    "centroids",
    "conditional_weights",
    "contrastive_attraction",
    "contrastive_repulsion",
    "decoupled_contrastive_loss",
    "decoupled_contrastive_weighted",
    "diagonal_cross_entropy",
    "dynamic_bad_pair_loss",
    "edge_affinity",
    "graph_convolution",
    "graph_matching",
    "graph_matching_loss",
    "hard_info_nce",
    "info_nce",
    "judge_alignment",
    "judge_alignment_from_cosines",
    "judge_score",
    "local_affinity",
    "log_odds",
    "logit_dp_gradient",
    "logit_dp_influence",
    "logit_dp_loss",
    "logit_dp_sensitivity",
    "logit_dp_weights",
    "loss_statistics",
    "mann_whitney_from_cosines",
    "mann_whitney_from_scores",
    "mann_whitney_loss",
    "matching_objective",
    "msbreg_loss",
    "nearest_rows",
    "negative_von_mises_fisher_weights",
    "nt_xent",
    "pair_gradient_norms",
    "pair_memory",
    "pair_weights",
    "potential_negatives",
    "rbf_repulsion",
    "record_losses",
    "relative_penalties",
    "reranker_loss",
    "select_negatives",
    "simple_contrastive",
    "singular_isotropy",
    "supervised_contrastive",
    "temperature_free_info_nce",
    "tolerance",
    "two_view_terms",
    "uniformity",
    "vic_reg",
]
