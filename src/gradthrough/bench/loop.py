"""What the training loops share: devices, optimizers, the numbers of an epoch, divergence."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from lightning_fabric import Fabric
from torch import nn

from .._errors import ConfigError
from .config import Precision, RunConfig
from .seeds import Seeds
from .task import AbstractTask
from .tasks import TASKS

# The fused and foreach forms: on a small model the plain loop over tensors costs more than the
# forward pass. All of them are elementwise, but for the count of the steps.
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adam": partial(torch.optim.Adam, fused=True),
    "radam": partial(torch.optim.RAdam, foreach=True),
    "sgd": partial(torch.optim.SGD, fused=True),
}

CHECK_EVERY = 50  # steps; a look at the loss waits for the device


class DivergedError(Exception):
    """The loss or the logits stopped being finite."""


def diverged(step: int, epoch: int, loss: float) -> str:
    """Return what a run says whose loss is gone."""
    return (
        f"step {step}: the loss is {loss} in epoch {epoch + 1}. "
        "Lower the learning rate, or raise tau if it is small."
    )


def launch(accelerator: str, devices: int, precision: Precision) -> Fabric:
    """Return the devices, as lightning-fabric has them."""
    if accelerator == "auto" and not torch.cuda.is_available():
        accelerator = "cpu"  # noise is float64, which some other accelerators do not have
    fabric = Fabric(accelerator=accelerator, devices=devices, precision=precision)
    fabric.launch()
    return fabric


def build_task(config: RunConfig) -> AbstractTask:
    """Return the task of a config.

    Raises:
        ConfigError: unknown task.
    """
    if config.task not in TASKS:
        raise ConfigError(f"unknown task {config.task!r}. Known: {', '.join(TASKS)}.")
    return TASKS[config.task](**config.task_options)


def path_of(config: RunConfig, out: Path, experiment: str | None) -> Path:
    """Return where the records of a config go."""
    return out / (experiment or config.task) / f"{config.key}.jsonl"


def steps_of(task: AbstractTask, config: RunConfig, seeds: Seeds) -> int:
    """Return how many steps all epochs have."""
    batches = task.batches("train", seeds, epoch=0, size=config.batch_size)
    return config.epochs * sum(1 for _ in batches)


def metrics(
    task: AbstractTask, model: nn.Module, seeds: Seeds, *, final: bool
) -> dict[tuple[str, str], float]:
    """Return the numbers of the held-out splits by (split, metric), in evaluation mode."""
    model.eval()
    found = {
        (split, name): value
        for split in ("valid", "test")
        for name, value in task.evaluate(model, split, seeds, final=final).items()
    }
    model.train()
    return found


def draw_pictures(task: AbstractTask, model: nn.Module, seeds: Seeds, path: Path) -> None:
    """Write the pictures of a task beside its records."""
    import matplotlib.image

    for name, picture in task.pictures(model, seeds).items():
        target = path.with_name(f"{path.stem}-{name}.png")
        matplotlib.image.imsave(target, picture.numpy(), cmap="gray_r", vmin=0, vmax=1)
