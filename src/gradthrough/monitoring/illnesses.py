"""The known illnesses of training through discrete choices, and how each shows in numbers."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Literal, NamedTuple

from .._errors import DomainError
from ..estimators.checks import check_positive

Kind = Literal[
    "nonfinite", "vanishing_gradient", "exploding_variance", "posterior_collapse", "dead_latents",
    "unused_codes", "soft_at_evaluation", "soft_value", "no_gradient", "reversed_gradient",
    "doubled_gradient", "sum_trap", "unused_sample",
]  # fmt: skip


class MonitorWarning(UserWarning):
    """Training through a discrete choice shows a known illness."""


class Finding(NamedTuple):
    """One illness: its kind, the step, the number that gave it away, and what it means."""

    kind: Kind
    step: int
    value: float
    text: str


class Symptom(NamedTuple):
    """A finding that has no step yet."""

    kind: Kind
    value: float
    text: str


@dataclass(frozen=True)
class Thresholds:
    """From where on a number is an illness.

    Args:
        warmup: observed steps before a running number is judged, >= 2. A young posterior is flat.
        attenuation: below this share of the Jacobian at tau = 1, a tau above 1 counts as large.
        weak_gradient: relative gradient ``||g|| ||w|| / |loss|`` that is too small beside it.
        small_tau: up to here tau counts as small.
        low_snr: signal-to-noise ratio that is too small beside it.
        dead_class: a class is dead below this part of an equal share.
        dead_latent: a latent is dead below this mutual information, in nats.
        dead_share: share of dead classes, or of dead latents, that is worth a warning.

    Raises:
        DomainError: a number that is not finite and above 0, a warmup below 2.

    Example:
        >>> from gradthrough.monitoring.illnesses import Thresholds
        >>> Thresholds(warmup=20, small_tau=0.05).dead_share
        0.25
    """

    warmup: int = 10
    attenuation: float = 0.25
    weak_gradient: float = 1e-2
    small_tau: float = 0.1
    low_snr: float = 0.1
    dead_class: float = 0.01
    dead_latent: float = 0.01
    dead_share: float = 0.25

    def __post_init__(self) -> None:
        for field in fields(self):
            check_positive(field.name, getattr(self, field.name))
        if self.warmup < 2:  # one gradient has no variance
            raise DomainError(f"warmup must be 2 or more observed steps, but is {self.warmup}.")


def nonfinite(row: Mapping[str, float], has_loss: bool) -> Iterator[Symptom]:
    """Say which numbers of a row are NaN or infinite."""
    found: list[str] = []
    if has_loss and not math.isfinite(row["loss"]):
        found.append(f"the loss is {row['loss']}")
    if row["bad_rows"]:
        found.append(f"{row['bad_rows']:.0f} rows of logits hold NaN, +inf, or -inf in every class")
    if row["bad_gradients"]:
        found.append(f"NaN or inf is in the gradients of {row['bad_gradients']:.0f} parameters")
    if found:
        yield Symptom(
            "nonfinite",
            row["bad_rows"] + row["bad_gradients"],
            f"{' and '.join(found)}. If the optimizer takes this step, all later ones are lost. "
            "Lower the learning rate, clip the gradient, raise a small tau; with a GradScaler call "
            "monitor.step after scaler.unscale_, and do not mind its first steps.",
        )


def judge(row: Mapping[str, float], t: Thresholds) -> Iterator[Symptom]:
    """Say which illnesses the running numbers of a row show."""
    yield from _gradient(row, t)
    yield from _law(row, t)


def _gradient(row: Mapping[str, float], t: Thresholds) -> Iterator[Symptom]:
    tau, relative, snr = row["tau"], row["relative_gradient"], row["snr"]
    if row["mean_norm"] == 0.0:
        yield Symptom(
            "vanishing_gradient",
            0.0,
            "the gradient of the watched parameters is exactly 0. Nothing that they do reaches "
            "the loss: look for argmax, detach or no_grad on the way, and check the sample with "
            "monitor.check_sample. Or tau is so small that every sample is saturated: raise it.",
        )
    elif tau > 1.0 and row["attenuation"] < t.attenuation and relative < t.weak_gradient:
        yield Symptom(
            "vanishing_gradient",
            relative,
            f"the gradient vanishes: ||g|| ||w|| / |loss| is {relative:.2g}, and tau = {tau:.3g} "
            f"leaves {row['attenuation']:.2g} of the Jacobian that a sample has at tau = 1. A "
            "large tau makes samples flat. Lower it (0.5 to 1 is common), or take an estimator "
            "that needs none, such as ReinMax() or RLOO().",
        )
    if tau <= t.small_tau and snr < t.low_snr:
        yield Symptom(
            "exploding_variance",
            snr,
            f"the gradient is noise: its signal-to-noise ratio is {snr:.2g} (variance "
            f"{row['grad_variance']:.2g}) at tau = {tau:.3g}. The second moment of a relaxed "
            "sample's Jacobian grows as 1 / tau: most samples carry no gradient, a few a huge one. "
            "Raise tau (0.5 to 1 is common) or anneal it later, average more samples, or take an "
            "estimator of less variance, such as GumbelRao() or ReinMax().",
        )


def _law(row: Mapping[str, float], t: Thresholds) -> Iterator[Symptom]:
    dead, latents, mi = row["dead_latents"], row["latents"], row["mean_information"]
    if latents and dead == latents:
        yield Symptom(
            "posterior_collapse",
            mi,
            f"the posterior has collapsed: a latent shares {mi:.2g} nats with the data on average, "
            f"none of {latents:.0f} more than {t.dead_latent:g}; KL to the prior is "
            f"{row['kl']:.2g} nats a latent. q is the same for every row, so z says nothing about "
            "it. Weight the KL less at first (annealing, free bits), weaken the decoder, or check "
            "that a gradient reaches the encoder.",
        )
    elif latents and dead / latents >= t.dead_share:
        yield Symptom(
            "dead_latents",
            dead / latents,
            f"{dead:.0f} of {latents:.0f} latents do not depend on the data: each shares less than "
            f"{t.dead_latent:g} nats with it. Use fewer latents, or give each its free bits of KL.",
        )
    share = row["dead_classes"] / row["classes"] if row["classes"] else 0.0
    if share >= t.dead_share:
        yield Symptom(
            "unused_codes",
            share,
            f"{row['dead_classes']:.0f} of {row['classes']:.0f} classes are hardly ever probable: "
            f"each has less than {t.dead_class:g} of an equal share, averaged over the observed "
            "rows. They get no gradient and stay unused. Use fewer classes, raise the entropy "
            "(weight the KL to the prior more, start from flatter logits), or set dead ones anew.",
        )
