"""The training loop of one run: every task, every estimator, resumable after any kill."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, cast

import torch
from lightning_fabric import Fabric
from torch import Tensor

from .._errors import ConfigError, UnsoundLogitsError
from ..estimators import AbstractEstimator
from ..rollout import Bound
from . import loop, records
from .compiled import CompiledLosses
from .config import RunConfig
from .journal import Journal, Result
from .loop import DivergedError
from .optimizers import Schedule, tempered
from .progress import Progress
from .seeds import Seeds
from .task import AbstractTask, Batch
from .tuning import Tuning


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
        LockedError: another process writes the same run.
        ConfigError: a step that cannot be compiled, or not on several devices.
    """
    path = loop.path_of(config, out, experiment)
    fabric = loop.launch(accelerator, devices, config.precision)
    task = task or loop.build_task(config)
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
        self.fabric, self.config, self.task = fabric, config, task
        self.show = progress and fabric.is_global_zero
        self.seeds = Seeds(config.seed)
        task.prepare(fabric.device)
        model = task.model(self.seeds)
        optimizers = task.optimizers(model, config)
        self.schedule = Schedule(config, optimizers[0], task.watched_metric.better)
        wrapped: Any = fabric.setup(model, *optimizers)
        self.model, *self.optimizers = wrapped
        self.generator = torch.Generator(fabric.device)
        estimator = config.build_estimator()
        self.refusal = task.refuses(estimator)
        self.tuning = None if self.refusal else self._tuning(estimator)
        if self.tuning is not None:
            estimator = self.tuning.estimator
        self.estimator = estimator
        self.bound = Bound(estimator, samples=config.samples or 1, generator=self.generator)
        self.compiled = None if self.refusal else self._compiled(estimator)
        self.journal = Journal(
            config, path, fabric.device, devices=fabric.world_size, writes=fabric.is_global_zero
        )

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

    def _compiled(self, estimator: AbstractEstimator) -> CompiledLosses | None:
        """Return the compiled losses, where they are to be compiled."""
        mode, devices = self.config.compile, self.fabric.world_size
        if mode == "none":
            return None
        if devices > 1:
            raise ConfigError(f"compile is {mode!r} on {devices} devices, but it serves one.")
        model, samples = self.model.module, self.config.samples or 1
        return CompiledLosses(self.task, model, estimator, samples, mode, self.fabric.device)

    def go(self) -> Result:
        journal = self.journal
        if self.refusal is not None:
            journal.start()
            return self._end("skipped", f"{self.config.label}: {self.refusal}")
        state = journal.load()
        if state is not None:
            self._restore(state)
        if journal.status is not None:
            return self._result(journal.status == "done" and state is not None)
        journal.start(anew=state is None)
        try:
            self._train()
        except DivergedError as why:
            return self._end("diverged", str(why))
        found = self._metrics(final=True)
        if self.fabric.is_global_zero:
            loop.draw_pictures(self.task, self.model, self.seeds, journal.path)
        return self._end("done", None, found)

    def _train(self) -> None:
        journal, config = self.journal, self.config
        total = loop.steps_of(self.task, config, self.seeds)
        with Progress(total, config.label, self.show) as bar:
            bar.advance(journal.step)
            while journal.epoch < config.epochs:
                began = time.perf_counter()
                loss = self._train_epoch(bar)
                journal.epoch += 1
                journal.seconds += time.perf_counter() - began
                found = {("train", self.task.metrics[0].name): loss}
                last = journal.epoch == config.epochs
                if evaluated := last or journal.epoch % config.evaluate_every == 0:
                    found |= self._metrics(final=False)
                watched = found.get(("valid", self.task.watched_metric.name))
                self.schedule.step(watched, evaluated=evaluated)
                journal.write(found)
                journal.save(self._state())
                self.fabric.barrier()

    def _train_epoch(self, bar: Progress) -> float:
        """Return the mean loss over the epoch, as it was while the weights moved."""
        rank, world = self.fabric.global_rank, self.fabric.world_size
        journal, counter = self.journal, self.compiled or self.bound
        self.generator.manual_seed(self.seeds.of("noise", journal.epoch, rank))
        self.bound.estimator = tempered(self.estimator, self.config, journal.epoch)
        total = torch.zeros((), dtype=torch.float64, device=self.fabric.device)
        count = 0
        batches = self.task.batches(
            "train", self.seeds, epoch=journal.epoch, size=self.config.batch_size
        )
        for batch in batches:
            share = batch[rank::world]
            losses = self._train_step(share, len(share) * world / len(batch))
            total += losses.sum()
            count += losses.numel()
            journal.step += 1
            if journal.step % loop.CHECK_EVERY == 0:
                self._check(total, count)
                bar.show(float(total) / count)
            bar.advance(1)
        self._check(total, count)
        mine = torch.stack((total, *total.new_tensor((count, counter.evaluations))))
        counter.evaluations = 0
        sums = cast(Tensor, self.fabric.all_reduce(mine, reduce_op="sum"))
        journal.evaluations += int(sums[2])
        return float(sums[0] / sums[1])

    def _train_step(self, batch: Batch, weight: float) -> Tensor:
        """Step on this device's share of a batch; devices count by how many examples they have."""
        self.bound.tuning_losses.clear()
        try:
            losses = self._losses(batch)
        except UnsoundLogitsError as error:
            raise DivergedError(f"step {self.journal.step}: {error}") from error
        loss = losses.mean() * weight if weight else losses.sum()
        # The mean over no rows at all is not a number.
        for tuning in self.bound.tuning_losses if weight else ():
            loss = loss + tuning * weight
        self.fabric.backward(loss)
        if self.config.clip is not None:
            norm = torch.nn.utils.clip_grad_norm_
            norm(self.model.parameters(), self.config.clip)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        if self.tuning is not None:
            self.tuning.step()
        return losses.detach()

    def _losses(self, batch: Batch) -> Tensor:
        if self.compiled is None:
            return self.task.losses(self.model, batch, self.bound)
        with self.fabric.autocast():
            return self.compiled(batch, self.generator)

    def _check(self, total: Tensor, count: int) -> None:
        if not bool(total.isfinite()):
            journal = self.journal
            raise DivergedError(loop.diverged(journal.step, journal.epoch, float(total) / count))

    def _end(
        self,
        status: records.Status,
        reason: str | None,
        found: dict[tuple[str, str], float] | None = None,
    ) -> Result:
        self.journal.end(status, reason, found)
        self.fabric.barrier()
        return self._result(status == "done")

    def _result(self, whole: bool) -> Result:
        return self.journal.result(self.task, self.model.module if whole else None)

    def _metrics(self, *, final: bool) -> dict[tuple[str, str], float]:
        epoch = self.journal.epoch
        return loop.metrics(self.task, self.model, self.config, epoch=epoch, final=final)

    def _state(self) -> dict[str, Any]:
        first, *others = (optimizer.state_dict() for optimizer in self.optimizers)
        state = {"model": self.model.module.state_dict(), "optimizer": first}
        further = {"further_optimizers": others} if others else {}
        tuning = {} if self.tuning is None else {"tuning": self.tuning.state()}
        return state | further | self.schedule.state() | tuning

    def _restore(self, state: dict[str, Any]) -> None:
        self.model.module.load_state_dict(state["model"])
        states = (state["optimizer"], *state.get("further_optimizers", ()))
        for optimizer, one in zip(self.optimizers, states, strict=True):
            optimizer.load_state_dict(one)
        self.schedule.restore(state)
        if self.tuning is not None:
            self.tuning.restore(state["tuning"])
