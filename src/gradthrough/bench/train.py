"""The one training loop: every task, every estimator, resumable after any kill."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from .._errors import ConfigError, UnsoundLogitsError
from ..estimators import AbstractEstimator
from ..rollout import Bound
from . import checkpoint, records
from .config import RunConfig
from .environment import environment
from .progress import Progress
from .records import Record
from .seeds import Seeds
from .task import AbstractTask
from .tasks import TASKS
from .tuning import Tuning

# The fused and foreach forms: on a small model the plain loop over tensors costs more than the
# forward pass.
_OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adam": partial(torch.optim.Adam, fused=True),
    "radam": partial(torch.optim.RAdam, foreach=True),
    "sgd": partial(torch.optim.SGD, fused=True),
}


@dataclass
class Result:
    """A finished run: its records, and the model where it trained to the end."""

    config: RunConfig
    path: Path
    records: list[Record]
    task: AbstractTask
    model: nn.Module | None

    @property
    def status(self) -> str:
        """How it ended."""
        return self.records[-1].status or "failed"

    def last(self, split: str, metric: str) -> float | None:
        """Return the latest value of a metric, None where there is none."""
        hits = [r for r in self.records if (r.split, r.metric) == (split, metric)]
        return hits[-1].value if hits else None


class _DivergedError(Exception):
    """The loss or the logits stopped being finite."""


def build_task(config: RunConfig) -> AbstractTask:
    """Return the task of a config.

    Raises:
        ConfigError: unknown task.
    """
    if config.task not in TASKS:
        raise ConfigError(f"unknown task {config.task!r}. Known: {', '.join(TASKS)}.")
    return TASKS[config.task](**config.task_options)


def run(
    config: RunConfig,
    *,
    out: Path,
    experiment: str | None = None,
    accelerator: str = "auto",
    devices: int = 1,
    progress: bool = True,
    task: AbstractTask | None = None,
) -> Result:
    """Train one config, or take it up where a kill left it, or return it if it is done.

    Args:
        config: what to run.
        out: folder of results; records go to ``<out>/<experiment>/<key>.jsonl``, the checkpoint
            and pictures beside them.
        experiment: its subfolder; the task's name by default.
        accelerator: as lightning-fabric has it.
        devices: how many.
        progress: show a bar.
        task: the task of the config, to share its data between runs.

    Returns:
        The result; status "done", "diverged" (with a reason) or "skipped".

    Raises:
        ConfigError: another process writes the same run.
    """
    path = out / (experiment or config.task) / f"{config.key}.jsonl"
    if accelerator == "auto" and not torch.cuda.is_available():
        accelerator = "cpu"  # noise is float64, which some other accelerators do not have
    fabric = Fabric(accelerator=accelerator, devices=devices, precision=config.precision)
    fabric.launch()
    task = task or build_task(config)
    lock = records.Lock(path) if fabric.is_global_zero else None
    try:
        return _Run(fabric, config, task, path, progress).go()
    finally:
        if lock is not None:
            lock.release()


class _Run:
    def __init__(
        self, fabric: Fabric, config: RunConfig, task: AbstractTask, path: Path, progress: bool
    ) -> None:
        self.fabric, self.config, self.task, self.path = fabric, config, task, path
        self.show = progress and fabric.is_global_zero
        self.seeds = Seeds(config.seed)
        task.prepare(fabric.device)
        model = task.model(self.seeds)
        optimizer = _OPTIMIZERS[config.optimizer](model.parameters(), lr=config.lr)
        wrapped: Any = fabric.setup(model, optimizer)
        self.model, self.optimizer = wrapped
        self.generator = torch.Generator(fabric.device)
        estimator = config.build_estimator()
        self.refusal = task.refuses(estimator)
        self.tuning = None if self.refusal else self._tuning(estimator)
        if self.tuning is not None:
            estimator = self.tuning.estimator
        self.bound = Bound(estimator, samples=config.samples or 1, generator=self.generator)
        self.epoch = self.step = self.evaluations = 0
        self.seconds = 0.0

    def _tuning(self, estimator: AbstractEstimator) -> Tuning | None:
        """Return what the estimator learns, where it is to learn."""
        lr, size = self.config.tuning_lr, self.config.batch_size
        if lr is None:
            return None
        batch = next(iter(self.task.batches("train", self.seeds, epoch=0, size=size)))
        with torch.no_grad():
            law = self.task.latent(self.model, batch)
        seed = self.seeds.of("tuning")
        return Tuning(estimator, law, lr=lr, seed=seed, fabric=self.fabric)

    @property
    def _checkpoint(self) -> Path:
        return self.path.with_suffix(".ckpt")

    def go(self) -> Result:
        if self.refusal is not None:
            self._start()
            return self._end("skipped", f"{self.config.label}: {self.refusal}")
        old = records.read(self.path)
        # A checkpoint without its records would end in a run with a hole: start anew.
        state = checkpoint.load(self._checkpoint, self.fabric.device) if old else None
        if state is not None:
            self._restore(state)
        if old and old[-1].kind == "end":
            return self._result(old[-1].status == "done" and state is not None)
        if state is None:
            self._start()
        elif self.fabric.is_global_zero:
            # Lines after the checkpoint belong to work that is about to be done again.
            kept = [r for r in old if r.step <= self.step]
            records.write(self.path, [*kept, self._start_record()])
        try:
            self._train()
        except _DivergedError as why:
            return self._end("diverged", str(why))
        found = self._metrics(final=True)
        self._pictures()
        return self._end("done", None, found)

    def _train(self) -> None:
        per_epoch = math.ceil(self._examples() / self.config.batch_size)
        with Progress(self.config.epochs * per_epoch, self.config.label, self.show) as bar:
            bar.advance(self.step)
            while self.epoch < self.config.epochs:
                began = time.perf_counter()
                loss = self._train_epoch(bar)
                self.epoch += 1
                self.seconds += time.perf_counter() - began
                found = {("train", self.task.metrics[0].name): loss}
                if self.epoch % self.config.evaluate_every == 0 or self.epoch == self.config.epochs:
                    found |= self._metrics(final=False)
                self._write(found)
                self._save()

    def _train_epoch(self, bar: Progress) -> float:
        """Return the mean loss over the epoch, as it was while the weights moved."""
        rank, world = self.fabric.global_rank, self.fabric.world_size
        self.generator.manual_seed(self.seeds.of("noise", self.epoch, rank))
        total = torch.zeros((), dtype=torch.float64, device=self.fabric.device)
        count = 0
        batches = self.task.batches(
            "train", self.seeds, epoch=self.epoch, size=self.config.batch_size
        )
        for batch in batches:
            share = batch[rank::world]
            losses = self._train_step(share, len(share) * world / len(batch))
            total += losses.sum()
            count += losses.numel()
            self.step += 1
            if self.step % 50 == 0:
                self._check(total, count)
                bar.show(float(total) / count)
            bar.advance(1)
        self._check(total, count)
        mine = torch.stack((total, *total.new_tensor((count, self.bound.evaluations))))
        self.bound.evaluations = 0
        sums = cast(Tensor, self.fabric.all_reduce(mine, reduce_op="sum"))
        self.evaluations += int(sums[2])
        return float(sums[0] / sums[1])

    def _train_step(self, batch: Tensor, weight: float) -> Tensor:
        """Step on this device's share of a batch; devices count by how many examples they have."""
        self.bound.tuning_losses.clear()
        try:
            losses = self.task.losses(self.model, batch, self.bound)
        except UnsoundLogitsError as error:
            raise _DivergedError(f"step {self.step}: {error}") from error
        loss = losses.mean() * weight if weight else losses.sum()
        # The mean over no rows at all is not a number.
        for tuning in self.bound.tuning_losses if weight else ():
            loss = loss + tuning * weight
        self.fabric.backward(loss)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.tuning is not None:
            self.tuning.step()
        return losses.detach()

    def _check(self, total: Tensor, count: int) -> None:
        if not bool(total.isfinite()):
            raise _DivergedError(
                f"step {self.step}: the loss is {float(total) / count} in epoch {self.epoch + 1}. "
                "Lower the learning rate, or raise tau if it is small."
            )

    def _examples(self) -> int:
        sizes = (len(b) for b in self.task.batches("train", self.seeds, epoch=0, size=10_000))
        return sum(sizes)

    def _metrics(self, *, final: bool) -> dict[tuple[str, str], float]:
        self.model.eval()
        found = {
            (split, name): value
            for split in ("valid", "test")
            for name, value in self.task.evaluate(
                self.model, split, self.seeds, final=final
            ).items()
        }
        self.model.train()
        return found

    def _start_record(self) -> Record:
        """Say what runs, and where: once, and again whenever the run is taken up."""
        facts = environment(self.fabric.device) | {"devices": self.fabric.world_size}
        config = self.config.as_dict()
        return Record("start", self.config.key, self.step, config=config, environment=facts)

    def _start(self) -> None:
        if self.fabric.is_global_zero:
            records.write(self.path, [self._start_record()])

    def _lines(self, found: dict[tuple[str, str], float]) -> list[Record]:
        return [
            Record(
                "metric", self.config.key, self.step, split, metric, value,
                self.evaluations, round(self.seconds, 3),
            )
            for (split, metric), value in found.items()
        ]  # fmt: skip

    def _write(self, found: dict[tuple[str, str], float]) -> None:
        if self.fabric.is_global_zero:
            records.append(self.path, self._lines(found))

    def _end(
        self,
        status: records.Status,
        reason: str | None,
        found: dict[tuple[str, str], float] | None = None,
    ) -> Result:
        if self.fabric.is_global_zero:
            last = Record(
                "end", self.config.key, self.step, evaluations=self.evaluations,
                seconds=round(self.seconds, 3), status=status, reason=reason,
            )  # fmt: skip
            # In one go: what is measured at the end is there once or not at all.
            records.append(self.path, [*self._lines(found or {}), last])
        self.fabric.barrier()
        return self._result(status == "done")

    def _result(self, whole: bool) -> Result:
        model = self.model.module if whole else None
        return Result(self.config, self.path, records.read(self.path), self.task, model)

    def _save(self) -> None:
        if self.fabric.is_global_zero:
            counters = {k: getattr(self, k) for k in ("epoch", "step", "evaluations", "seconds")}
            model = self.model.module.state_dict()
            optimizer = self.optimizer.state_dict()
            tuning = {} if self.tuning is None else {"tuning": self.tuning.state()}
            state = counters | {"model": model, "optimizer": optimizer} | tuning
            checkpoint.save(self._checkpoint, state)
        self.fabric.barrier()

    def _restore(self, state: dict[str, Any]) -> None:
        self.model.module.load_state_dict(state.pop("model"))
        self.optimizer.load_state_dict(state.pop("optimizer"))
        if self.tuning is not None:
            self.tuning.restore(state.pop("tuning"))
        for name, value in state.items():
            setattr(self, name, value)

    def _pictures(self) -> None:
        if not self.fabric.is_global_zero:
            return
        import matplotlib.image

        for name, picture in self.task.pictures(self.model, self.seeds).items():
            target = self.path.with_name(f"{self.config.key}-{name}.png")
            matplotlib.image.imsave(target, picture.numpy(), cmap="gray_r", vmin=0, vmax=1)
