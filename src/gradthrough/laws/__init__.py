"""The laws that samples are drawn from."""

from .base import Distribution as Distribution
from .bernoulli import Bernoulli as Bernoulli
from .categorical import Categorical as Categorical
from .convert import as_discrete as as_discrete
from .convert import as_distribution as as_distribution
from .law import Law as Law
