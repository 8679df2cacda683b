"""Every task, in one table."""

from ..task import AbstractTask
from .vae import VAE

TASKS: dict[str, type[AbstractTask]] = {
    "vae": VAE,
}
