"""Classes of torch.distributions: samples with the gradient of an estimator, and Logistic."""

from . import kl as kl  # adds the classes to torch's table of KL divergences
from .bernoulli import Bernoulli as Bernoulli
from .logistic import Logistic as Logistic
from .one_hot import OneHotCategorical as OneHotCategorical
