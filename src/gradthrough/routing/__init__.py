"""Sparse routing: one expert is drawn for each row and runs alone, and its router is trained."""

from .balance import load_balance as load_balance
from .sparsemixers import Routed as Routed
from .sparsemixers import check_eps as check_eps
from .sparsemixers import check_top as check_top
from .sparsemixers import sparsemixer as sparsemixer
from .sparsemixers import sparsemixer_v2 as sparsemixer_v2
