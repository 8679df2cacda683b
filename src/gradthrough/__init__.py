"""gradthrough: train through discrete random choices."""

from importlib.metadata import PackageNotFoundError, version

from ._errors import BackendError as BackendError
from ._errors import ConfigError as ConfigError
from ._errors import DomainError as DomainError
from ._errors import GradthroughError as GradthroughError
from ._errors import ShapeError as ShapeError
from ._errors import UnsupportedError as UnsupportedError
from ._random import preserve as preserve
from .distributions import Bernoulli as Bernoulli
from .distributions import Categorical as Categorical
from .distributions import Distribution as Distribution
from .distributions import as_distribution as as_distribution
from .estimators import ESTIMATORS as ESTIMATORS
from .estimators import RLOO as RLOO
from .estimators import AbstractEstimator as AbstractEstimator
from .estimators import Draw as Draw
from .estimators import Enumerate as Enumerate
from .estimators import Estimate as Estimate
from .estimators import GappedStraightThrough as GappedStraightThrough
from .estimators import GumbelRao as GumbelRao
from .estimators import GumbelSoftmax as GumbelSoftmax
from .estimators import Reinforce as Reinforce
from .estimators import ReinMax as ReinMax
from .estimators import StraightThrough as StraightThrough
from .estimators import StraightThroughGumbelSoftmax as StraightThroughGumbelSoftmax
from .estimators import Traits as Traits
from .estimators import estimator as estimator
from .estimators import gapped_straight_through as gapped_straight_through
from .estimators import gumbel_rao as gumbel_rao
from .estimators import gumbel_softmax as gumbel_softmax
from .estimators import reinmax as reinmax
from .estimators import straight_through as straight_through
from .estimators import straight_through_gumbel_softmax as straight_through_gumbel_softmax
from .expect import estimate as estimate
from .expect import expect as expect
from .expect import fold as fold
from .kernels.dispatch import set_validation as set_validation
from .rollout import Bound as Bound
from .rollout import Rollout as Rollout

try:
    __version__ = version("gradthrough")
except PackageNotFoundError:  # run from a source tree that is not installed
    __version__ = "0+unknown"
