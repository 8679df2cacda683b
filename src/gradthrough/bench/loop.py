"""What the training loops share: devices, optimizers, the numbers of an epoch, divergence."""

from __future__ import annotations

from pathlib import Path

import torch
from lightning_fabric import Fabric
from torch import nn

from .._errors import ConfigError
from .config import Precision, RunConfig
from .seeds import Seeds
from .task import AbstractTask
from .tasks import TASKS

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
    task: AbstractTask, model: nn.Module, config: RunConfig, *, epoch: int, final: bool
) -> dict[tuple[str, str], float]:
    """Return the numbers of the held-out splits and of the probe, in evaluation mode.

    Args:
        task: of the config.
        model: to look at.
        config: of the run.
        epoch: how many are done.
        final: after the last: the costly numbers alone, and no probe.

    Returns:
        By (split, metric); the split of a probe is "probe".
    """
    model.eval()
    seeds = Seeds(config.seed)
    found = {
        (split, name): value
        for split in ("valid", "test")
        for name, value in task.evaluate(model, split, seeds, final=final).items()
    }
    if not final:
        probed = task.probe(model, config, epoch=epoch)
        found |= {("probe", name): value for name, value in probed.items()}
    model.train()
    return found


def draw_pictures(task: AbstractTask, model: nn.Module, seeds: Seeds, path: Path) -> None:
    """Write the pictures of a task beside its records."""
    import matplotlib.image

    for name, picture in task.pictures(model, seeds).items():
        target = path.with_name(f"{path.stem}-{name}.png")
        matplotlib.image.imsave(target, picture.numpy(), cmap="gray_r", vmin=0, vmax=1)
