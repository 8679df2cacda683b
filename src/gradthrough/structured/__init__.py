"""Random choices with a structure: subsets, orders, sequences, permutations, gates."""

from .beam import Beams as Beams
from .beam import beam_weights as beam_weights
from .beam import stochastic_beam_search as stochastic_beam_search
from .gates import hard_concrete as hard_concrete
from .gates import hard_concrete_gate as hard_concrete_gate
from .gates import hard_concrete_open as hard_concrete_open
from .gates import hard_concrete_penalty as hard_concrete_penalty
from .k_hot import relaxed_k_hot as relaxed_k_hot
from .k_hot import straight_through_k_hot as straight_through_k_hot
from .permutations import gumbel_sinkhorn as gumbel_sinkhorn
from .permutations import sinkhorn as sinkhorn
from .plackett_luce import TopK as TopK
from .plackett_luce import gumbel_top_k as gumbel_top_k
from .plackett_luce import importance_weights as importance_weights
from .plackett_luce import plackett_luce_log_prob as plackett_luce_log_prob
from .simple import sample_subset as sample_subset
from .simple import simple as simple
from .subsets import subset_entropy as subset_entropy
from .subsets import subset_kl as subset_kl
from .subsets import subset_log_partition as subset_log_partition
from .subsets import subset_log_prob as subset_log_prob
from .subsets import subset_marginals as subset_marginals
from .unordered import plackett_luce_subset_log_prob as plackett_luce_subset_log_prob
