"""Every task, in one table."""

from ..task import AbstractTask
from .bernoulli_vae import BernoulliVAE
from .polynomial import Polynomial
from .vae import VAE

TASKS: dict[str, type[AbstractTask]] = {
    "vae": VAE,
    "bernoulli_vae": BernoulliVAE,
    "polynomial": Polynomial,
}
