"""Compiled steps: torch.compile, or a reason why not; never a silent return to eager code."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn

from .._errors import ConfigError, GradthroughError
from ..estimators import AbstractEstimator
from .config import Compile
from .noise import Given, NoisePlan
from .task import AbstractTask

Losses = Callable[[Tensor, tuple[Tensor, ...]], Tensor]


def compiled(losses: Losses, mode: Compile, device: torch.device) -> Losses:
    """Return losses (batch, noise) as one graph, with its backward; as they are for "none".

    Args:
        losses: what to compile, in one piece.
        mode: "none", "default", or "reduce-overhead", which records CUDA graphs.
        device: where the tensors live.

    Raises:
        ConfigError: CUDA graphs without CUDA, a torch before 2.13, or, when it is called, code
            that cannot be compiled.
    """
    if mode == "none":
        return losses
    graphs = mode == "reduce-overhead"
    if graphs and device.type != "cuda":
        raise ConfigError(
            f"compile='reduce-overhead' records CUDA graphs, but the device is {device}. Use "
            "compile='default' there."
        )
    # Not among the overloads that its types declare.
    compiler = cast("Callable[..., Losses]", torch.compile)
    if "isolate_recompiles" not in inspect.signature(compiler).parameters:
        raise ConfigError(f"compile={mode!r} needs torch 2.13, but this is {torch.__version__}.")
    # Every run has graphs of its own: torch keeps few of them for one piece of code. One graph for
    # each shape, of which there are two: the last batch of an epoch is smaller.
    run = compiler(losses, fullgraph=True, dynamic=False, mode=mode, isolate_recompiles=True)

    def step(batch: Tensor, noise: tuple[Tensor, ...]) -> Tensor:
        if graphs:
            torch.compiler.cudagraph_mark_step_begin()
        try:
            out = run(batch, noise)
        except Exception as error:
            raise _explained(error, mode) from error
        # The next replay writes over what a graph returned.
        return out.clone() if graphs else out

    return step


def _explained(error: Exception, mode: str) -> Exception:
    """Return what the user is told: an error of the compiler is one of the option."""
    origin = type(error).__module__
    if isinstance(error, GradthroughError) or not origin.startswith(
        ("torch._dynamo", "torch._inductor")
    ):
        return error
    line = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return ConfigError(f"compile={mode!r}, but this cannot be compiled: {line.strip()}")


class CompiledLosses:
    """The losses of a task on one device, compiled; the noise is that of the eager step.

    Args:
        task: whose losses.
        model: of the task, on `device`.
        estimator: any of ``ESTIMATORS``, with nothing to learn.
        samples: N, >= 1.
        mode: as `compiled` has it.
        device: where the model lives.

    Attributes:
        evaluations: of f, since the last time that somebody set it to 0.

    Raises:
        ConfigError: as `compiled`; a task whose noise cannot be drawn ahead.
    """

    def __init__(
        self,
        task: AbstractTask,
        model: nn.Module,
        estimator: AbstractEstimator,
        samples: int,
        mode: Compile,
        device: torch.device,
    ) -> None:
        def losses(batch: Tensor, noise: tuple[Tensor, ...]) -> Tensor:
            return task.losses(model, batch, Given(estimator, samples, noise))

        self._run = compiled(losses, mode, device)
        # A copy, whose weights stay sound whatever becomes of the model.
        self._plan = NoisePlan(task, copy.deepcopy(model), estimator, samples)
        self.evaluations = 0

    def __call__(self, batch: Tensor, generator: torch.Generator) -> Tensor:
        """Return the losses (B,) of a batch (B, ...)."""
        noise = self._plan.draw(batch, generator)
        self.evaluations += self._plan.evaluations(batch)
        return self._run(batch, noise).float()
