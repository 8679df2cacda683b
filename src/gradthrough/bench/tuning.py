"""Estimators that learn: their own tensors, and the optimizer that trains them."""

from __future__ import annotations

from typing import Any, cast

import torch
from lightning_fabric import Fabric
from torch import Tensor

from .._errors import ConfigError, UnsupportedError
from ..estimators.base import AbstractEstimator
from ..laws.base import Distribution


class Tuning:
    """The learnable tensors of an estimator, trained by Adam on its tuning loss.

    Args:
        estimator: as its options say; `estimator` is the copy that learns.
        dist: a law like those to come.
        lr: learning rate.
        seed: of the networks' initialisation; torch's global state is left as it was.
        fabric: whose devices share the work.

    Raises:
        ConfigError: the estimator has nothing to learn.
    """

    def __init__(
        self,
        estimator: AbstractEstimator,
        dist: Distribution,
        *,
        lr: float,
        seed: int,
        fabric: Fabric,
    ) -> None:
        try:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                self.estimator, self._module = estimator.learned(dist)
        except UnsupportedError as error:
            raise ConfigError(f"tuning_lr is {lr}, but {error} Leave tuning_lr out.") from error
        self._parameters = list(self._module.parameters())
        self._optimizer = torch.optim.Adam(self._parameters, lr=lr, fused=True)
        self._fabric = fabric

    def step(self) -> None:
        """Step along the gradients that a backward pass has left, the mean over the devices."""
        if self._fabric.world_size > 1:
            # By hand: the estimator uses the parameters outside of any forward of the module, from
            # where a wrapper could not know that their gradients are to be exchanged.
            for x in self._parameters:
                mine = torch.zeros_like(x) if x.grad is None else x.grad
                x.grad = cast(Tensor, self._fabric.all_reduce(mine, reduce_op="mean"))
        self._optimizer.step()
        self._optimizer.zero_grad()

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint needs."""
        return {"module": self._module.state_dict(), "optimizer": self._optimizer.state_dict()}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self._module.load_state_dict(state["module"])
        self._optimizer.load_state_dict(state["optimizer"])
