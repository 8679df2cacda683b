"""Every task, in one table."""

from ..task import AbstractTask
from .bernoulli_vae import BernoulliVAE
from .efficiency import Efficiency
from .gaussian_vae import GaussianVAE
from .gradient_accuracy import GradientAccuracy
from .listops import ListOps
from .moe import MoE
from .nas import NAS
from .polynomial import Polynomial
from .temperature import Temperature
from .tutorial_vae import TutorialVAE
from .vae import VAE

TASKS: dict[str, type[AbstractTask]] = {
    "vae": VAE,
    "bernoulli_vae": BernoulliVAE,
    "efficiency": Efficiency,
    "polynomial": Polynomial,
    "nas": NAS,
    "listops": ListOps,
    "gradient_accuracy": GradientAccuracy,
    "temperature": Temperature,
    "moe": MoE,
    "tutorial_vae": TutorialVAE,
    "gaussian_vae": GaussianVAE,
}
