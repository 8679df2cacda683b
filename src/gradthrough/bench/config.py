"""The configuration of one run: plain data, with a key made from its content."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from .._errors import ConfigError, DomainError
from ..estimators import AbstractEstimator, estimator
from .options import added, plain

Optimizer = Literal["adam", "radam", "sgd"]
Precision = Literal["32-true", "bf16-mixed"]
Compile = Literal["none", "default", "reduce-overhead"]
Schedule = Literal["none", "cosine", "plateau"]
_WHOLE = ("samples", "batch_size", "epochs", "seed", "evaluate_every", "patience")
_REAL = ("lr", "tuning_lr", "momentum", "weight_decay", "clip", "lr_end", "tau_end", "tau_rate")
_OPTIONAL = ("tuning_lr", "clip", "tau_end", "tau_rate")


@dataclass(frozen=True)
class RunConfig:
    """Everything that can move a result.

    Args:
        task: key of ``TASKS``.
        task_options: its fields, all of them: a default that changes later is another run. Only
            fields that were `added` to a task with records are left out at their default.
        estimator: key of ``ESTIMATORS``.
        estimator_options: fields of its class; what is left out has its default.
        samples: samples for each example and step, >= 1; None: as few as the estimator takes.
        optimizer: adam, radam or sgd.
        lr: learning rate, > 0.
        batch_size: examples for each step, >= 1.
        epochs: passes over the training data, >= 1.
        seed: of everything random.
        precision: what lightning-fabric calls it.
        tuning_lr: learning rate, > 0, of the estimator's own tensors (a baseline, the scale of a
            control variate): Adam on its tuning loss. None: they stay as the options say.
        evaluate_every: epochs from one evaluation of the held-out splits to the next, >= 1; after
            the last epoch there always is one.
        compile: mode of torch.compile for the training step, "none" for eager code;
            "reduce-overhead" records CUDA graphs and wants a CUDA device. The noise is the same,
            the rounding is not.
        momentum: of sgd, in [0, 1).
        weight_decay: of every optimizer, >= 0.
        clip: norm to which the gradient of the weights is cut before each step, > 0.
        schedule: what moves the learning rate, once for each epoch: "cosine" takes it to `lr_end`
            after the last epoch; "plateau" halves it when the metric that the task watches, on the
            split "valid", has not become better in more than `patience` evaluations.
        lr_end: where "cosine" ends, >= 0.
        patience: of "plateau", >= 0.
        tau_end: tau of the last epoch, > 0; between the first, which the options say, and the last
            it moves linearly. None: it stays.
        tau_rate: r, > 0, of an exponential decay instead: in epoch e, from 0, tau is the first one
            times exp(-r e), and no less than `tau_end`. A rate for each step, times the steps of
            an epoch. None: the line.

    Raises:
        ConfigError: unknown names; what is no number; options that exclude one another.
        DomainError: a number out of range.

    Example:
        >>> from gradthrough.bench.config import RunConfig
        >>> len(RunConfig("vae", {}, "reinmax", {"tau": 1.3}).key)
        12
    """

    task: str
    task_options: Mapping[str, Any]
    estimator: str
    estimator_options: Mapping[str, Any] = field(default_factory=dict[str, Any])
    samples: int | None = None
    optimizer: Optimizer = "adam"
    lr: float = 5e-4
    batch_size: int = 100
    epochs: int = 160
    seed: int = 0
    precision: Precision = "32-true"
    tuning_lr: float | None = added(None)
    evaluate_every: int = added(1)
    # added() makes a field.
    compile: Compile = added("none")  # noqa: RUF009
    momentum: float = added(0.0)
    weight_decay: float = added(0.0)
    clip: float | None = added(None)
    schedule: Schedule = added("none")  # noqa: RUF009
    lr_end: float = added(0.0)
    patience: int = added(2)
    tau_end: float | None = added(None)
    tau_rate: float | None = added(None)

    def __post_init__(self) -> None:
        built = self.build_estimator()  # refuses unknown keys and options
        if self.samples is None:
            object.__setattr__(self, "samples", built.traits.min_samples)
        self._check_types()
        names = {
            "optimizer": Optimizer,
            "precision": Precision,
            "compile": Compile,
            "schedule": Schedule,
        }
        for name, known in names.items():
            if getattr(self, name) not in get_args(known):
                raise ConfigError(
                    f"{name} is {getattr(self, name)!r}, but must be one of "
                    f"{', '.join(get_args(known))}."
                )
        for name in ("samples", "batch_size", "epochs", "evaluate_every"):
            if getattr(self, name) < 1:
                raise DomainError(f"{name} must be at least 1, but is {getattr(self, name)}.")
        least = built.traits.min_samples
        if self.samples is not None and self.samples < least:
            raise DomainError(
                f"samples is {self.samples}, but {self.estimator} needs at least {least}."
            )
        if getattr(built, "antithetic", False) and (self.samples or 1) % 2:
            raise DomainError(f"antithetic draws come in pairs, but samples is {self.samples}.")
        for name in ("lr", "tuning_lr", "clip", "tau_end", "tau_rate"):
            number = getattr(self, name)
            if number is not None and not 0 < number < float("inf"):
                raise DomainError(f"{name} must be finite and above 0, but is {number}.")
        for name in ("momentum", "weight_decay", "lr_end", "patience"):
            end = 1 if name == "momentum" else float("inf")
            if not 0 <= getattr(self, name) < end:
                raise DomainError(f"{name} must be in [0, {end}), but is {getattr(self, name)}.")
        self._check_pairs(built)

    def _check_types(self) -> None:
        """Refuse what is no number, and a fraction where things are counted."""
        for name in (*_WHOLE, *_REAL):
            value, whole = getattr(self, name), name in _WHOLE
            known = isinstance(value, int if whole else int | float)
            # A bool is an int to Python, and not to who writes a file.
            if (known and not isinstance(value, bool)) or (value is None and name in _OPTIONAL):
                continue
            raise ConfigError(
                f"{name} is {value!r}, but must be a {'whole number' if whole else 'number'}."
            )

    def _check_pairs(self, built: AbstractEstimator) -> None:
        """Refuse options that exclude one another."""
        if self.momentum and self.optimizer != "sgd":
            raise ConfigError(
                f"momentum is {self.momentum}, but the optimizer is {self.optimizer}. Take "
                "optimizer='sgd', or leave momentum out."
            )
        if self.tau_end is not None and not hasattr(built, "tau"):
            raise ConfigError(
                f"tau_end is {self.tau_end}, but {self.estimator} has no tau. Leave tau_end out."
            )
        if self.tau_rate is not None and self.tau_end is None:
            raise ConfigError(
                f"tau_rate is {self.tau_rate}, but there is no tau_end, below which tau does not "
                "decay. Give one."
            )
        if self.compile == "none":
            return
        for name in ("tuning_lr", "tau_end"):
            if getattr(self, name) is not None:
                raise ConfigError(
                    f"compile is {self.compile!r} and {name} is {getattr(self, name)}, but a "
                    "compiled step keeps its estimator as it is. Leave one of them out."
                )

    def build_estimator(self) -> AbstractEstimator:
        """Return the estimator that the run uses."""
        return estimator(self.estimator, **self.estimator_options)

    def as_dict(self) -> dict[str, Any]:
        """Return plain data, ready for JSON."""
        return plain(self)

    @property
    def key(self) -> str:
        """SHA256 of the canonical JSON, 12 hex digits."""
        text = json.dumps(self.as_dict(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    @property
    def label(self) -> str:
        """The estimator's key with its options, how tau moves, and the rate of its own tensors."""
        names = ("tau_end", "tau_rate", "tuning_lr")
        tuned = {k: v for k in names if (v := getattr(self, k)) is not None}
        options = ", ".join(
            f"{k}={v}" for k, v in (*self.estimator_options.items(), *tuned.items())
        )
        return f"{self.estimator}({options})"
