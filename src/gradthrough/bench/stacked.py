"""Stacked models: the same network with the weights of several seeds, trained in one pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from .._errors import ConfigError
from ..estimators import AbstractEstimator
from .config import RunConfig
from .noise import Given
from .optimizers import build
from .task import AbstractTask

_SHARED = "step"  # what optimizers call their count, the same number for all seeds


class _Losses(nn.Module):
    """The losses of a task as the forward of a module: that is what takes other weights."""

    def __init__(
        self, task: AbstractTask, model: nn.Module, estimator: AbstractEstimator, samples: int
    ) -> None:
        super().__init__()
        self.model = model
        self._task, self._estimator, self._samples = task, estimator, samples

    def forward(self, batch: Tensor, noise: tuple[Tensor, ...]) -> Tensor:
        return self._task.losses(self.model, batch, Given(self._estimator, self._samples, noise))


class Stack:
    """Models of one architecture, their weights stacked, with one optimizer for all.

    The seeds do not meet: the gradient of the sum of their losses is for each one that of its own,
    and the optimizers are elementwise.

    Args:
        task: whose losses.
        model: of the task, on the device: the network, whose own weights are overwritten.
        config: the optimizer, its rate and the samples.
        estimator: the one of the config.
        states: of each seed, "model" and, if it has trained, "optimizer", as a run of its own has
            them in its checkpoint. The optimizers have done the same number of steps.
        turned: the matrices that are kept transposed, as `trial` finds them.
    """

    def __init__(
        self,
        task: AbstractTask,
        model: nn.Module,
        config: RunConfig,
        estimator: AbstractEstimator,
        states: Sequence[Mapping[str, Any]],
        turned: frozenset[str] = frozenset(),
    ) -> None:
        self._task, self._model = task, model
        self._turned = turned
        self._names = [name for name, _ in model.named_parameters()]
        weights: dict[str, list[Tensor]] = {name: [] for name in self._names}
        buffers: dict[str, list[Tensor]] = {name: [] for name, _ in model.named_buffers()}
        for state in states:
            model.load_state_dict(state["model"])
            for name, x in model.named_parameters():
                weights[name].append(x.detach().clone())
            for name, x in model.named_buffers():
                buffers[name].append(x.clone())
        self._weights = [
            self._turn(name, torch.stack(rows)).contiguous().requires_grad_()
            for name, rows in weights.items()
        ]
        self._buffers = {name: torch.stack(rows) for name, rows in buffers.items()}
        self._optimizer = build(config, self._weights)
        if "optimizer" in states[0]:
            self._load([state["optimizer"] for state in states])
        self._one = _Losses(task, model, estimator, config.samples or 1)

    def _turn(self, name: str, x: Tensor) -> Tensor:
        return x.mT if name in self._turned else x

    def losses(self, batches: Tensor, noise: tuple[Tensor, ...]) -> Tensor:
        """Return the losses (n, B) of batches (n, B, ...) with noise (n, ...) of each call."""
        own = {n: self._turn(n, x) for n, x in zip(self._names, self._weights, strict=True)}
        named = {f"model.{name}": x for name, x in (own | self._buffers).items()}

        def one(weights: dict[str, Tensor], batch: Tensor, noise: tuple[Tensor, ...]) -> Tensor:
            return functional_call(self._one, weights, (batch, noise))

        return vmap(one)(named, batches, noise).float()

    def transposed(self, batches: Tensor, noise: tuple[Tensor, ...]) -> frozenset[str]:
        """Return the names of the matrices whose gradient comes out transposed."""
        loss = self.losses(batches, noise).mean(-1).sum()
        found = cast(
            "tuple[Tensor | None, ...]",
            torch.autograd.grad(loss, self._weights, allow_unused=True),
        )
        return frozenset(
            name
            for name, g in zip(self._names, found, strict=True)
            if g is not None and g.ndim == 3 and not g.is_contiguous() and g.mT.is_contiguous()
        )

    def step(self, losses: Tensor) -> None:
        """Step on losses (n, B), each seed on the mean of its own."""
        losses.mean(-1).sum().backward()
        self._optimizer.step()
        self._optimizer.zero_grad()

    def model(self, i: int) -> nn.Module:
        """Return the network with the weights of the i-th seed, until the next call."""
        with torch.no_grad():
            for (name, x), stacked in zip(
                self._model.named_parameters(), self._weights, strict=True
            ):
                x.copy_(self._turn(name, stacked)[i])
            for name, x in self._model.named_buffers():
                x.copy_(self._buffers[name][i])
        return self._model

    def state(self, i: int) -> dict[str, Any]:
        """Return the state of the i-th seed, as a run of its own would have it."""
        model = {name: x.clone() for name, x in self.model(i).state_dict().items()}
        whole = cast("dict[str, dict[int, dict[str, Any]]]", self._optimizer.state_dict())
        optimizer = {
            "state": {
                k: {key: self._part(self._names[k], key, x, i) for key, x in one.items()}
                for k, one in whole["state"].items()
            },
            "param_groups": whole["param_groups"],
        }
        return {"model": model, "optimizer": optimizer}

    def _part(self, name: str, key: str, x: Any, i: int) -> Any:  # noqa: ANN401 - of an optimizer
        if not isinstance(x, Tensor):
            return x
        return x.clone() if key == _SHARED else self._turn(name, x)[i].clone()

    def _load(self, states: Sequence[Mapping[str, Any]]) -> None:
        first = cast("dict[str, dict[int, dict[str, Any]]]", states[0])
        together = {
            k: {
                key: self._whole(self._names[k], key, [s["state"][k][key] for s in states])
                for key in one
            }
            for k, one in first["state"].items()
        }
        self._optimizer.load_state_dict({"state": together, "param_groups": first["param_groups"]})

    def _whole(self, name: str, key: str, parts: list[Any]) -> Any:  # noqa: ANN401
        if not isinstance(parts[0], Tensor) or key == _SHARED:
            return parts[0]
        return self._turn(name, torch.stack(parts)).contiguous()


def trial(
    task: AbstractTask,
    models: Sequence[nn.Module],
    config: RunConfig,
    estimator: AbstractEstimator,
    batches: Tensor,
    noise: tuple[Tensor, ...],
) -> frozenset[str]:
    """Take one pass that is thrown away; return the matrices that are better kept transposed.

    Those are the ones whose gradient comes out transposed: an optimizer would copy it at each step.

    Args:
        task: whose losses.
        models: of n seeds, fresh.
        config: of the run.
        estimator: the one of the config.
        batches: (n, B, ...).
        noise: of each call of `expect`, (n, ...).

    Raises:
        ConfigError: the losses cannot be taken for several seeds at once, and why.
    """
    try:
        _check_stateless(task, models[0], config, estimator, batches[0], [x[0] for x in noise])
        states = [{"model": model.state_dict()} for model in models]
        return Stack(task, models[0], config, estimator, states).transposed(batches, noise)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        why = next((line for line in str(error).splitlines() if line.strip()), repr(error))
        raise ConfigError(
            f"{config.label} on {config.task} cannot train several seeds as one: "
            f"{why.strip().rstrip('.')}. Train them one by one, with --seed."
        ) from error


def _check_stateless(
    task: AbstractTask,
    model: nn.Module,
    config: RunConfig,
    estimator: AbstractEstimator,
    batch: Tensor,
    noise: Sequence[Tensor],
) -> None:
    """Refuse a model that keeps state from step to step: nobody would keep that of each seed."""
    before = {name: x.clone() for name, x in model.named_buffers()}
    task.losses(model, batch, Given(estimator, config.samples or 1, noise))
    changed = [name for name, x in model.named_buffers() if not torch.equal(x, before[name])]
    if changed:
        raise ConfigError(f"the model keeps state between steps, in {', '.join(changed)}.")
