"""What a command line asks for: how to train, and with which seeds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from .._errors import ConfigError
from .config import RunConfig
from .journal import Result
from .seeds import parse_seeds
from .task import AbstractTask
from .together import run_together
from .train import run


@dataclass
class Training:
    """How to train.

    Args:
        estimator: key of the estimator; `gradthrough list` shows all.
        samples: samples for each example and step; as few as the estimator takes by default.
        optimizer: the optimiser.
        lr: learning rate.
        batch_size: examples for each step.
        epochs: passes over the training data.
        seed: of everything random; 0 by default.
        seeds: several seeds, trained at once as one vectorised run: 0..9 or 0,3,7.
        precision: as lightning-fabric has it.
        compile: mode of torch.compile for the training step; reduce-overhead: CUDA graphs.
        tuning_lr: learning rate of the estimator's own tensors, which stay fixed by default.
        momentum: of sgd.
        weight_decay: of the optimiser.
        clip: norm to which the gradient of the weights is cut.
        schedule: of the learning rate: cosine goes to lr_end, plateau halves it.
        lr_end: where cosine ends.
        patience: evaluations that plateau waits.
        tau_end: tau of the last epoch; it moves there linearly.
        tau_rate: of a decay to tau_end that is exponential in the epochs, instead.
        evaluate_every: epochs from one evaluation of the held-out splits to the next.
        out: folder of the results.
        experiment: subfolder of the results; the task's name by default.
        accelerator: cpu, cuda or auto.
        devices: how many devices.
        threads: threads of one process on CPU; torch's own choice by default.
    """

    estimator: str = "reinmax"
    samples: int | None = None
    optimizer: Literal["adam", "radam", "sgd"] = "adam"
    lr: float = 5e-4
    batch_size: int = 100
    epochs: int = 160
    seed: int | None = None
    seeds: str | None = None
    precision: Literal["32-true", "bf16-mixed"] = "32-true"
    compile: Literal["none", "default", "reduce-overhead"] = "none"
    tuning_lr: float | None = None
    momentum: float = 0.0
    weight_decay: float = 0.0
    clip: float | None = None
    schedule: Literal["none", "cosine", "plateau"] = "none"
    lr_end: float = 0.0
    patience: int = 2
    tau_end: float | None = None
    tau_rate: float | None = None
    evaluate_every: int = 1
    out: Path = Path("runs")
    experiment: str | None = None
    accelerator: str = "auto"
    devices: int = 1
    threads: int | None = None


def run_requested(
    name: str, task: AbstractTask, training: Training, options: Mapping[str, Any]
) -> list[Result]:
    """Train with one seed, or with several at once; return the results in their order.

    Args:
        name: of the task.
        task: with its options.
        training: how to train.
        options: of the estimator.

    Raises:
        ConfigError: both a seed and seeds; several seeds on several devices; as `run` and
            `run_together`.
    """
    if training.seed is not None and training.seeds is not None:
        raise ConfigError("--seed and --seeds both came. Give one of them.")
    seeds = (training.seed or 0,) if training.seeds is None else parse_seeds(training.seeds)
    config = RunConfig(
        task=name,
        task_options=task.options(),
        estimator=training.estimator,
        estimator_options=options,
        samples=training.samples,
        optimizer=training.optimizer,
        lr=training.lr,
        batch_size=training.batch_size,
        epochs=training.epochs,
        seed=seeds[0],
        precision=training.precision,
        tuning_lr=training.tuning_lr,
        evaluate_every=training.evaluate_every,
        compile=training.compile,
        momentum=training.momentum,
        weight_decay=training.weight_decay,
        clip=training.clip,
        schedule=training.schedule,
        lr_end=training.lr_end,
        patience=training.patience,
        tau_end=training.tau_end,
        tau_rate=training.tau_rate,
    )
    out, experiment, accelerator = training.out, training.experiment, training.accelerator
    if len(seeds) == 1:
        return [
            run(
                config,
                out=out,
                experiment=experiment,
                accelerator=accelerator,
                devices=training.devices,
                task=task,
            )
        ]
    if training.devices != 1:
        raise ConfigError(
            f"devices is {training.devices}, but several seeds at once train on one. Leave it out, "
            "or train the seeds one by one, with --seed."
        )
    return run_together(
        config, seeds, out=out, experiment=experiment, accelerator=accelerator, task=task
    )
