"""Optimizers, what moves their rates over the epochs, and what moves tau: made from a config."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, ReduceLROnPlateau

from .._errors import ConfigError
from ..estimators import AbstractEstimator
from ..schedules import Exponential, Linear
from .config import RunConfig

# The fused and foreach forms: on a small model the plain loop over tensors costs more than the
# forward pass. All of them are elementwise, but for the count of the steps.
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adam": partial(torch.optim.Adam, fused=True),
    "radam": partial(torch.optim.RAdam, foreach=True),
    # Not fused: with momentum that fails once only some parameters have had a gradient.
    "sgd": partial(torch.optim.SGD, foreach=True),
}


def build(
    config: RunConfig,
    parameters: Iterable[nn.Parameter] | Iterable[torch.Tensor],
    *,
    nesterov: bool = False,
) -> torch.optim.Optimizer:
    """Return the optimizer of a config for some parameters.

    Args:
        config: whose optimizer.
        parameters: that it moves.
        nesterov: the momentum of sgd, where there is any, is Nesterov's.
    """
    options: dict[str, Any] = {"lr": config.lr, "weight_decay": config.weight_decay}
    if config.optimizer == "sgd":
        options["momentum"] = config.momentum
        options["nesterov"] = nesterov and config.momentum > 0
    return OPTIMIZERS[config.optimizer](parameters, **options)


def tempered(estimator: AbstractEstimator, config: RunConfig, epoch: int) -> AbstractEstimator:
    """Return the estimator with the tau of an epoch, from 0, as `config` says that it moves.

    Example:
        >>> import dataclasses, gradthrough as gt
        >>> from gradthrough.bench.config import RunConfig
        >>> from gradthrough.bench.optimizers import tempered
        >>> config = RunConfig("vae", {}, "stgs", {"tau": 10.0}, epochs=100, tau_end=0.1)
        >>> [tempered(gt.StraightThroughGumbelSoftmax(10.0), config, e).tau for e in (0, 99)]
        [10.0, 0.1]
        >>> config = dataclasses.replace(config, tau_rate=0.1)
        >>> [round(tempered(gt.StraightThroughGumbelSoftmax(10.0), config, e).tau, 2)
        ...  for e in (0, 10, 99)]
        [10.0, 3.68, 0.1]
    """
    if config.tau_end is None:
        return estimator
    tau: float = getattr(estimator, "tau")  # noqa: B009 - the config checked that it is there
    if not epoch:
        return estimator
    if config.tau_rate is not None:
        tau = Exponential(tau, config.tau_rate, config.tau_end)(epoch)
    else:
        tau = Linear(tau, config.tau_end, max(config.epochs - 1, 1))(epoch)
    moved: Any = estimator  # a dataclass, like every estimator with options
    return dataclasses.replace(moved, tau=tau)


class Schedule:
    """Moves the rate of an optimizer, once for each epoch.

    Args:
        config: whose `schedule` says how.
        optimizer: whose rate.
        better: which way the watched number is better, "lower" or "higher".
    """

    def __init__(self, config: RunConfig, optimizer: torch.optim.Optimizer, better: str) -> None:
        self._plateau = self._cosine = None
        if config.schedule == "plateau":
            mode = "max" if better == "higher" else "min"
            # Better is strictly better: the default, relative, is wrong where numbers are below 0.
            self._plateau = ReduceLROnPlateau(
                optimizer,
                mode=mode,
                factor=0.5,
                patience=config.patience,
                threshold=0.0,
                threshold_mode="abs",
            )
        elif config.schedule == "cosine":
            self._cosine = CosineAnnealingLR(optimizer, config.epochs, eta_min=config.lr_end)

    def step(self, watched: float | None, *, evaluated: bool) -> None:
        """End an epoch.

        Args:
            watched: what the task watches, of the split "valid"; None if there is nothing.
            evaluated: whether the held-out splits were looked at after this epoch.

        Raises:
            ConfigError: the rate depends on it, and the task holds nothing out.
        """
        if self._cosine is not None:
            self._cosine.step()
        if self._plateau is not None and evaluated:
            if watched is None:
                raise ConfigError(
                    'schedule is "plateau", but the task holds no data out to watch. Hold some out '
                    '(valid=...), or take another schedule, "none" or "cosine".'
                )
            self._plateau.step(watched)

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint needs; empty where nothing moves."""
        moving = self._plateau or self._cosine
        return {} if moving is None else {"schedule": moving.state_dict()}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        moving = self._plateau or self._cosine
        if moving is not None:
            moving.load_state_dict(state["schedule"])
