"""Running numbers of a training loop: nothing of size steps x parameters is kept."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from .._errors import ConfigError, ShapeError, UnsupportedError
from .._types import compute_dtype
from ..laws.base import Distribution
from .illnesses import Thresholds
from .posterior import Posterior, census


class RunningMean:
    """Means that weigh values ``decay^0, decay^1, ...`` from the newest back, by name.

    Args:
        decay: in (0, 1).
    """

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self.counts: dict[str, int] = {}
        self.numbers: dict[str, float] = {}
        self.tensors: dict[str, Tensor] = {}

    def _weight(self, name: str) -> float:
        n = self.counts[name] = self.counts.get(name, 0) + 1
        return newest_weight(self.decay, n)

    def add(self, name: str, x: float) -> float:
        """Take a number in; return the mean."""
        a, old = self._weight(name), self.numbers.get(name, 0.0)
        self.numbers[name] = old + a * (x - old)
        return self.numbers[name]

    def add_tensor(self, name: str, x: Tensor) -> Tensor:
        """Take a tensor in, always of one shape; return the mean."""
        a, old = self._weight(name), self.tensors.get(name)
        self.tensors[name] = x.clone() if old is None else old.lerp(x, a)
        return self.tensors[name]


def newest_weight(decay: float, n: int) -> float:
    """Return the weight of the newest of n values, of weights that sum to one."""
    return (1.0 - decay) / (1.0 - decay**n)


def watched(x: nn.Module | Tensor | Iterable[Tensor]) -> list[Tensor]:
    """Return the parameters that require a gradient, at least one."""
    if isinstance(x, nn.Module):
        x = x.parameters()
    found = [x] if isinstance(x, Tensor) else list(x)
    for p in found:
        if not isinstance(p, Tensor):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise UnsupportedError(
                f"parameters must be tensors, but a {type(p).__name__} came. Pass a module or "
                "module.parameters(), not named_parameters()."
            )
    out = [p for p in found if p.requires_grad]
    if not out:
        raise ConfigError(
            f"none of the {len(found)} parameters requires a gradient, so that there is nothing to "
            "watch. Pass those that the optimizer trains; an iterator can be used once only."
        )
    return out


class GradientMoments:
    """Mean and total variance of the gradient of parameters, streaming.

    With weights w_i that sum to one: ``m = sum w_i g_i``, ``v = sum w_i ||g_i - m||^2 /
    (1 - sum w_i^2)``, which is unbiased, and the signal ``||m||^2 - v sum w_i^2``. Kept are m and
    three numbers.

    Args:
        parameters: that require a gradient; one without any counts as zeros.
        decay: in (0, 1).
    """

    def __init__(self, parameters: Sequence[Tensor], decay: float) -> None:
        self.parameters, self.decay, self.count = tuple(parameters), decay, 0
        self._means = [
            torch.zeros(p.shape, dtype=compute_dtype(p.dtype), device=p.device)
            for p in self.parameters
        ]
        self._held: list[Tensor] | None = None
        self._spread = self._squares = 0.0
        self.variance = self.snr = self.weights = math.nan

    def hold(self) -> None:
        """Copy the gradients as they are, for the next look: before they are clipped, say."""
        self._held = [g.clone() for g in self._now()]

    def norms(self) -> list[Tensor]:
        """Return the norm of each gradient, not waited for."""
        return [_norm(g) for g in self._now()]

    def release(self) -> None:
        """Forget what was held."""
        self._held = None

    def _now(self) -> list[Tensor]:
        if self._held is not None:
            return self._held
        return [_gradient(p, m) for p, m in zip(self.parameters, self._means, strict=True)]

    def update(self) -> None:
        """Take in the gradients as they are now."""
        self.count += 1
        a = newest_weight(self.decay, self.count)
        moved: list[Tensor] = []
        for p, g, mean in zip(self.parameters, self._now(), self._means, strict=True):
            step = g - mean
            mean.add_(step, alpha=a)
            moved += [_norm(step), _norm(mean), _norm(p.detach())]
        squares = [x * x for x in fetch(moved)]
        self._spread = (1.0 - a) * (self._spread + a * sum(squares[0::3]))
        self._squares = (1.0 - a) ** 2 * self._squares + a * a
        self.weights = math.sqrt(sum(squares[2::3]))
        if self.count < 2:
            return
        self.variance = self._spread / (1.0 - self._squares)
        signal = max(sum(squares[1::3]) - self.variance * self._squares, 0.0)
        self.snr = signal / self.variance if self.variance else math.inf if signal else 0.0


def _gradient(p: Tensor, like: Tensor) -> Tensor:
    if p.grad is None:
        return torch.zeros_like(like)
    g = p.grad.detach()
    return (g if g.layout == torch.strided else g.to_dense()).to(like.dtype)


def _norm(x: Tensor) -> Tensor:
    return cast(Tensor, torch.linalg.vector_norm(x, dtype=compute_dtype(x.dtype)))


def fetch(numbers: Sequence[Tensor]) -> list[float]:
    """Return numbers as Python's, in one wait for the device."""
    device = numbers[0].device
    together = torch.stack([x.detach().to(device, torch.float64) for x in numbers])
    found: list[float] = together.tolist()  # pyright: ignore[reportUnknownVariableType]
    return found


Loss = Tensor | float | None

NOW = ("loss", "entropy", "max_prob", "kl", "mutual_information", "attenuation", "bad_rows")
RUNNING = (
    *("mean_norm", "relative_gradient", "grad_variance", "snr"),
    *("dead_classes", "classes", "dead_latents", "latents", "mean_information"),
)


class Statistics:
    """Rows of numbers: what a step says by itself, and what the steps say together.

    Args:
        parameters: whose gradients are watched.
        decay: of the running means, in (0, 1).
    """

    def __init__(self, parameters: Sequence[Tensor], decay: float) -> None:
        self.gradients = GradientMoments(parameters, decay)
        self.means = RunningMean(decay)
        self.event: tuple[int, ...] | None = None  # with the classes last

    @property
    def usage(self) -> Tensor | None:
        """Running mean of q over the rows where a class is allowed."""
        if self.event is None:
            return None
        return (self.means.tensors["probs"] / self.means.tensors["allowed"]).reshape(self.event)

    def check_event(self, q: Distribution) -> None:
        """Refuse latents that are not those seen so far."""
        event = (*q.event_shape, q.classes)
        if self.event not in (None, event):
            raise ShapeError(
                f"a monitor watches latents of one shape: event and classes were {self.event} so "
                f"far, but are {event} now. Make a Monitor for each kind of latent."
            )

    def read(self, now: Posterior, loss: Loss, *, gradients: bool) -> dict[str, float]:
        """Return what a step says by itself, in one wait for the device."""
        value = math.nan if loss is None else loss
        mean = value.detach().mean() if isinstance(value, Tensor) else torch.tensor(value)
        numbers = (now.entropy, now.max_prob, now.kl, now.information.mean(), now.attenuation)
        norms = self.gradients.norms() if gradients else []
        found = fetch([*numbers, now.bad_rows, mean, *norms])
        *numbers, loss_now = found[: len(NOW)]
        lengths = found[len(NOW) :]
        row: dict[str, float] = dict(zip(NOW, (loss_now, *numbers), strict=True))
        row["grad_norm"] = math.hypot(*lengths)
        row["bad_gradients"] = sum(not math.isfinite(x) for x in lengths)
        if now.rows < 2:
            row["mutual_information"] = math.nan
        return row | dict.fromkeys(RUNNING, math.nan)

    def run(self, row: dict[str, float], now: Posterior, thresholds: Thresholds) -> None:
        """Take a sound step into the running numbers, and write these into its row."""
        self.event = now.event
        self.gradients.update()
        row["grad_variance"], row["snr"] = self.gradients.variance, self.gradients.snr
        row["mean_norm"] = self.means.add("norm", row["grad_norm"])
        if not math.isnan(row["loss"]):
            loss = abs(self.means.add("loss", row["loss"]))
            size = row["mean_norm"] * self.gradients.weights
            row["relative_gradient"] = size / loss if loss else math.inf
        probs = self.means.add_tensor("probs", now.probs)
        allowed = self.means.add_tensor("allowed", now.allowed)
        information = self.means.tensors.get("information")
        if now.rows > 1:
            information = self.means.add_tensor("information", now.information)
        dead = thresholds.dead_class, thresholds.dead_latent
        counts = fetch(census(probs, allowed, information, *dead))
        names = ("dead_classes", "classes", "dead_latents", "latents", "mean_information")
        row.update(zip(names, counts, strict=True))
