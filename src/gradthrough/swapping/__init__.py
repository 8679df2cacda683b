"""swap: another estimator in code that is not edited."""

from .swap import Swap as Swap
from .swap import SwapWarning as SwapWarning
from .swap import swap as swap
