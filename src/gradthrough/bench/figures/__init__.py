"""Figures that are drawn from fresh numbers, in one table."""

from collections.abc import Callable

from .gumbel import gumbel
from .gumbel_max import gumbel_max
from .sheet import Sheet
from .tau_variance import tau_variance
from .temperature import temperature
from .variance import variance

FIGURES: dict[str, Callable[[int, bool], Sheet]] = {
    "gumbel": gumbel,
    "gumbel-max": gumbel_max,
    "temperature": temperature,
    "variance": variance,
    "tau-variance": tau_variance,
}
