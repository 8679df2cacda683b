"""Classes of torch.distributions whose samples carry the gradient of an estimator."""

from . import kl as kl  # adds the classes to torch's table of KL divergences
from .bernoulli import Bernoulli as Bernoulli
from .one_hot import OneHotCategorical as OneHotCategorical
