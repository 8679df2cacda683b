"""The training loop of several seeds at once: each ends where its own run would, up to rounding."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import cast

from lightning_fabric import Fabric
from torch import nn

from .._errors import ConfigError
from . import loop, records
from .config import RunConfig
from .epoch import Epoch, Member, Setting, following
from .journal import Journal, Result
from .noise import NoisePlan
from .progress import Progress
from .stacked import Stack, trial
from .task import AbstractTask


def run_together(
    config: RunConfig,
    seeds: Sequence[int],
    *,
    out: Path,
    experiment: str | None = None,
    accelerator: str = "auto",
    progress: bool = True,
    task: AbstractTask | None = None,
) -> list[Result]:
    """Train one config with several seeds as one vectorised run, on one device.

    Each seed has its own initialisation, order of the data and noise, those of its own run, and
    leaves the same files: the same key, the numbers that `run` would find, up to rounding, and a
    checkpoint that `run` can go on from. In the records ``together`` says how many trained at once.
    After a kill all go on from their last checkpoints, those first that are behind; seeds that are
    done are not done again. A seed that diverges ends; the others go on.

    Args:
        config: what to run; its seed does not count.
        seeds: at least one, all different.
        out: folder of results, as `run` has it.
        experiment: its subfolder; the task's name by default.
        accelerator: as lightning-fabric has it.
        progress: show a bar.
        task: the task of the config, to share its data between runs.

    Returns:
        The results, in the order of the seeds.

    Raises:
        LockedError: another process writes one of the runs.
        ConfigError: no seeds, or one twice; an estimator that is to learn; a compiled step; a task
            or an estimator that cannot be vectorised.
    """
    if not seeds or len(set(seeds)) < len(seeds):
        raise ConfigError(f"seeds must be one or more, all different, but are {list(seeds)}.")
    if config.tuning_lr is not None:
        raise ConfigError(
            f"tuning_lr is {config.tuning_lr}, but several seeds at once train no estimator. Leave "
            "it out, or train the seeds one by one, with --seed."
        )
    if config.compile != "none":
        # Silently, in torch 2.13: it takes the derivative of the forward for the one that is given.
        raise ConfigError(
            f"compile is {config.compile!r}, but under vmap torch.compile leaves out the gradient "
            "that an estimator chose. Leave compile out, or train the seeds one by one, with "
            "--seed."
        )
    _check_alone(config)
    fabric = loop.launch(accelerator, 1, config.precision)
    task = task or loop.build_task(config)
    if type(task).optimizers is not AbstractTask.optimizers:
        raise ConfigError(
            f"{config.task} has optimizers of its own, but several seeds at once share one. Train "
            "the seeds one by one, with --seed."
        )
    task.prepare(fabric.device)
    members: list[Member] = []
    with ExitStack() as locks:
        for seed in seeds:
            one = replace(config, seed=seed)
            path = loop.path_of(one, out, experiment)
            locks.callback(records.Lock(path).release)
            members.append(Member(one, Journal(one, path, fabric.device)))
        _train(fabric, config, task, members, progress)
        models = [_model(task, m) if m.whole else None for m in members]
        return [m.journal.result(task, x) for m, x in zip(members, models, strict=True)]


def _check_alone(config: RunConfig) -> None:
    """Refuse what looks at the whole model, or moves from epoch to epoch: seeds share a step."""
    plain = {"clip": None, "schedule": "none", "tau_end": None}
    for name, none in plain.items():
        if (value := getattr(config, name)) != none:
            raise ConfigError(
                f"{name} is {value!r}, but several seeds at once share one optimizer. Leave it "
                "out, or train the seeds one by one, with --seed."
            )


def _train(
    fabric: Fabric, config: RunConfig, task: AbstractTask, members: list[Member], progress: bool
) -> None:
    """Bring every member to its end, from wherever it is."""
    refusal = task.refuses(config.build_estimator())
    if refusal is not None:
        for m in members:
            m.journal.start()
            m.end("skipped", f"{config.label}: {refusal}")
        return
    for m in members:
        m.state = m.journal.load() or {}
        m.ended = m.journal.status is not None
        m.whole = m.journal.status == "done" and bool(m.state)
    running = [m for m in members if not m.ended]
    if not running:
        return
    setting = _setting(fabric, config, task, running)
    for m in running:
        m.journal.together = len(running)
        m.journal.start(anew=not m.state)
        m.state = m.state or {"model": _model(task, m).state_dict()}
    title = f"{config.label}, {len(running)} seeds"
    with Progress(loop.steps_of(task, config, running[0].seeds), title, progress) as bar:
        bar.advance(min(m.journal.step for m in running))
        _epochs(setting, running, bar)
    for m in running:
        if not m.ended:
            _finish(setting, m)


def _setting(
    fabric: Fabric, config: RunConfig, task: AbstractTask, members: list[Member]
) -> Setting:
    """Find out, before anything is written, whether the seeds can be trained as one."""
    estimator = config.build_estimator()
    # Fresh models: what a checkpoint holds may be about to diverge.
    few = members[:2]
    models = [_fresh(task, m) for m in few]
    plan = NoisePlan(task, _fresh(task, few[0]), estimator, config.samples or 1)
    for m in few:
        m.begin(task, 0)
    with fabric.autocast():
        drawn = following(few, plan)
        assert drawn is not None
        turned = trial(task, models, config, estimator, *drawn)
    return Setting(fabric, config, task, estimator, models[0], plan, turned)


def _epochs(setting: Setting, members: list[Member], bar: Progress) -> None:
    """Train to the last epoch; members that are behind go first, until they meet the others."""
    group: list[Member] = []
    stack: Stack | None = None
    while running := [m for m in members if not m.ended]:
        least = min(m.journal.epoch for m in running)
        if least == setting.config.epochs:
            return
        behind = [m for m in running if m.journal.epoch == least]
        if stack is None or behind != group:
            stack = setting.stack([m.state for m in behind])
        began = time.perf_counter()
        epoch = Epoch(setting, behind, stack, bar)
        epoch.run()
        group, stack = epoch.members, epoch.stack
        if stack is not None:
            _note(setting, epoch, stack, time.perf_counter() - began)


def _note(setting: Setting, epoch: Epoch, stack: Stack, seconds: float) -> None:
    """Measure and write each member after an epoch that took so many seconds for all of them."""
    task, config = setting.task, setting.config
    losses = cast("list[float]", (epoch.losses / epoch.count).tolist())
    for i, m in enumerate(epoch.members):
        journal = m.journal
        journal.epoch += 1
        journal.evaluations += epoch.evaluations
        journal.seconds += seconds / len(epoch.members)
        journal.together = len(epoch.members)
        found = {("train", task.metrics[0].name): losses[i]}
        m.state = stack.state(i)
        if journal.epoch % config.evaluate_every == 0 or journal.epoch == config.epochs:
            found |= loop.metrics(task, stack.model(i), m.config, epoch=journal.epoch, final=False)
        journal.write(found)
        journal.save(m.state)


def _finish(setting: Setting, m: Member) -> None:
    model = setting.network
    model.load_state_dict(m.state["model"])
    found = loop.metrics(setting.task, model, m.config, epoch=m.journal.epoch, final=True)
    loop.draw_pictures(setting.task, model, m.seeds, m.journal.path)
    m.end("done", None, found)


def _fresh(task: AbstractTask, m: Member) -> nn.Module:
    return task.model(m.seeds).to(m.journal.device)


def _model(task: AbstractTask, m: Member) -> nn.Module:
    """Return a model with the weights of a member."""
    model = _fresh(task, m)
    if m.state:
        model.load_state_dict(m.state["model"])
    return model
