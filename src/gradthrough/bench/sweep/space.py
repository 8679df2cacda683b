"""Spaces: the settings that a search may ask for, and how it draws them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, cast

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial

from ..._errors import ConfigError
from ...estimators import ESTIMATORS
from ..cells import config_of, merged
from ..config import RunConfig
from ..experiment import Search
from ..seeds import Seeds
from ..tasks import TASKS
from ..typed import typed_options
from .studies import scratch

Space = dict[str, BaseDistribution]

# What makes a cell, and not a setting of it.
_FIXED = ("task", "estimator", "seed")


def space_of(search: Search, config: RunConfig) -> Space:
    """Return what may be asked, by dotted name in the order of the alphabet.

    Bounds make whole numbers where both are whole and the field takes whole numbers: ``tau = {low =
    1, high = 2}`` is continuous.

    Raises:
        ConfigError: no space at all, a name that the config does not have, or a range that is none.
    """
    if not search.space:
        raise ConfigError("the search has no space. Name a field: space.lr = {low, high, log}.")
    return {
        name: _distribution(name, search.space[name], _types_of(name, config))
        for name in sorted(search.space)
    }


def _types_of(name: str, config: RunConfig) -> list[object]:
    """Return the types that a field of a config takes."""
    group, _, option = name.rpartition(".")
    kinds = {
        "": RunConfig,
        "estimator_options": ESTIMATORS[config.estimator],
        "task_options": TASKS[config.task],
    }
    known = typed_options(kinds[group]) if group in kinds else {}
    if option not in known or name in _FIXED:
        free = ", ".join(sorted(set(known) - set(_FIXED)))
        there = f" {group or 'a config'} has {free} there." if free else ""
        raise ConfigError(
            f"the space has {name!r}, which is no setting of {config.task} with {config.estimator}."
            f"{there} Name one, or leave these cells out with search.where."
        )
    return known[option]


def _distribution(name: str, given: Mapping[str, Any], types: list[object]) -> BaseDistribution:
    try:
        if set(given) == {"choices"}:
            return CategoricalDistribution(_choices(given["choices"]))
        if {"low", "high"} <= set(given) <= {"low", "high", "log"}:
            low, high, log = given["low"], given["high"], bool(given.get("log", False))
            if int in types and type(low) is int and type(high) is int:
                return IntDistribution(low, high, log=log)
            return FloatDistribution(float(low), float(high), log=log)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"the space of {name} is {dict(given)}: {error}.") from None
    raise ConfigError(
        f"the space of {name} is {dict(given)}, but must be {{low, high, log}} or {{choices}}."
    )


def _choices(given: object) -> tuple[Any, ...]:
    if not isinstance(given, list | tuple) or not given:
        raise ValueError("choices must be a list of one or more")
    choices = cast("Sequence[Any]", given)
    if not all(isinstance(x, bool | int | float | str) for x in choices):
        raise ValueError("choices must be numbers, words, true or false")
    return tuple(choices)


def draw(search: Search, space: Space, past: Sequence[FrozenTrial], seed: int) -> dict[str, Any]:
    """Return the settings of the trial that follows those of the past.

    They are a function of the arguments, so a search that is taken up again goes on as it would
    have gone on. A random one does not look at the past.
    """
    seed %= 2**32  # of numpy
    sampler: BaseSampler = TPESampler(seed=seed)
    if search.sampler == "random":
        sampler, past = RandomSampler(seed), ()
    study = scratch(search, sampler)
    study.add_trials(past)
    return study.ask(space).params


def seed_of(experiment: str, levels: Mapping[str, str], number: int) -> int:
    """Return the seed of a trial: the same settings are asked whatever else the runs are given."""
    return Seeds(0).of("search", experiment, json.dumps(levels, sort_keys=True), number)


def laid_over(config: RunConfig, settings: Mapping[str, Any]) -> RunConfig:
    """Return a config with settings by dotted name.

    Raises:
        GradthroughError: they do not go together.
    """
    fields: dict[str, Any] = config.as_dict()
    for name, value in settings.items():
        group, _, option = name.rpartition(".")
        fields = merged(fields, {group: {option: value}} if group else {option: value})
    return config_of(fields)


def check_metric(metric: str, task: str) -> None:
    """Refuse a metric that no run of a task has.

    Raises:
        ConfigError: it is not "split/metric", or the task has no such metric.
    """
    split, _, name = metric.partition("/")
    known = [m.name for m in TASKS[task].metrics]
    # What a probe measures depends on the probe.
    if split == "probe" or (split in ("train", "valid", "test") and name in known):
        return
    raise ConfigError(
        f"search.metric is {metric!r}, but must be train/, valid/ or test/ and a metric of {task}: "
        f"{', '.join(known)}."
    )
