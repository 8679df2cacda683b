"""Layers: a discrete random choice as a module, and the temperature of one."""

from .categorical import CategoricalLayer as CategoricalLayer
from .quantizer import GumbelQuantizer as GumbelQuantizer
from .quantizer import Quantized as Quantized
from .router import Router as Router
from .router import Routing as Routing
from .temperature import Temperature as Temperature
from .temperature import step_temperatures as step_temperatures
