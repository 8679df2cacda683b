"""Modules that an estimator can learn from: baselines, control variates, surrogates.

The user owns them and their optimizer; ``Estimate.tuning_loss`` is what trains them.
"""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from ._errors import DomainError, ShapeError
from .laws.base import Distribution


def _mlp(sizes: Sequence[int], activation: nn.Module) -> nn.Sequential:
    layers: list[nn.Module] = []
    for a, b in pairwise(sizes):
        layers += [nn.Linear(a, b), activation]
    return nn.Sequential(*layers[:-1])


class MovingAverage(nn.Module):
    r"""A running mean, as a parameter: a baseline, or the variance of a learning signal.

    Trained on the mean of ``(f - c)^2`` by SGD with rate ``(1 - decay) / 2`` it is the
    exponential moving average ``c <- decay c + (1 - decay) mean f``, which never contains the
    values that it is subtracted from.

    Args:
        initial: where it starts.

    Example:
        >>> import torch, gradthrough as gt
        >>> c = gt.controls.MovingAverage()
        >>> optimizer = c.optimizer(decay=0.9)
        >>> f = lambda z: z[..., 0] * 0 + 5.0
        >>> out = gt.estimate(f, torch.zeros(4, 2), gt.Reinforce(baseline=c))
        >>> out.tuning_loss.backward()
        >>> _ = optimizer.step()
        >>> round(c.mean.item(), 4)
        0.5

    Reference:
        Mnih, Gregor, ICML 2014, arXiv:1402.0030.
    """

    def __init__(self, initial: float = 0.0) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.tensor(float(initial)))

    def forward(self, dist: Distribution) -> Tensor:
        """Return the mean, the same for every row."""
        return self.mean

    def optimizer(self, decay: float = 0.9) -> torch.optim.SGD:
        """Return the SGD that makes it an exponential moving average.

        Raises:
            DomainError: decay outside [0, 1).
        """
        if not 0.0 <= decay < 1.0:
            raise DomainError(f"decay must be in [0, 1), but is {decay}.")
        return torch.optim.SGD(self.parameters(), lr=(1.0 - decay) / 2)


class Critic(nn.Module):
    r"""A baseline that depends on the input: a network of the row's logits, or of your own data.

    Args:
        features: size of its input: of one row's logits, \*event and C, if used as
            ``baseline=critic``; of x if called as ``baseline=critic(x)``.
        hidden: widths of its hidden layers.

    Example:
        >>> import torch, gradthrough as gt
        >>> x, logits = torch.randn(5, 7), torch.zeros(5, 3, requires_grad=True)
        >>> critic = gt.controls.Critic(7)
        >>> f = lambda z: z[..., 0]
        >>> out = gt.estimate(f, logits, gt.Reinforce(baseline=critic(x)), samples=2)
        >>> out.tuning_loss.backward()

    Reference:
        NVIL: Mnih, Gregor, ICML 2014, arXiv:1402.0030.
    """

    def __init__(self, features: int, hidden: Sequence[int] = (100,)) -> None:
        super().__init__()
        self.features = features
        self.net = _mlp((features, *hidden, 1), nn.ReLU())

    def forward(self, x: Tensor | Distribution) -> Tensor:
        r"""Return (\*batch,) for data (\*batch, features) or a law with rows \*batch."""
        if isinstance(x, Distribution):
            # A masked class is -inf, which no network takes.
            x = x.logits.flatten(len(x.batch_shape)).clamp(-30.0, 30.0)
        x = x.detach()  # the loss that trains the critic is not to train what made its input
        if x.shape[-1] != self.features:
            raise ShapeError(
                f"this critic takes {self.features} features, but {x.shape[-1]} came: make it "
                f"Critic({x.shape[-1]}), or give it other data."
            )
        weight: Tensor = next(self.net.parameters())
        return self.net(x.to(weight.dtype)).squeeze(-1)


class Control(nn.Module):
    r"""A control variate for RELAX: a network of the relaxed point.

    Args:
        shape: of one row's point, (\*event[, C]).
        hidden: widths of its hidden layers.

    Example:
        >>> import torch, gradthrough as gt
        >>> control = gt.controls.Control((2, 3))  # two variables of three classes
        >>> control(torch.full((4, 5, 2, 3), 1 / 3)).shape
        torch.Size([4, 5])

    Reference:
        Grathwohl et al., ICLR 2018, arXiv:1711.00123.
    """

    def __init__(self, shape: Sequence[int], hidden: Sequence[int] = (137,)) -> None:
        super().__init__()
        self.dims = len(shape)
        self.net = _mlp((math.prod(shape), *hidden, 1), nn.LeakyReLU(0.3))

    def forward(self, points: Tensor) -> Tensor:
        r"""Return (N, \*batch) for relaxed points (N, \*batch, \*event[, C])."""
        rows = points.flatten(points.ndim - self.dims) if self.dims else points.unsqueeze(-1)
        weight: Tensor = next(self.net.parameters())
        return self.net(rows.to(weight.dtype)).squeeze(-1)


class Surrogate(nn.Module):
    """RODEO's surrogate of f: the Taylor term, plus a network of the Taylor term and the level.

    The network starts at 0, so that the surrogate starts as the Taylor term.

    Args:
        hidden: width of its hidden layer.

    Example:
        >>> import torch, gradthrough as gt
        >>> gt.controls.Surrogate()(torch.tensor([[0.5, 3.0]])).tolist()
        [[0.5, 0.5]]

    Reference:
        Shi et al., NeurIPS 2022, arXiv:2202.09497.
    """

    def __init__(self, hidden: int = 100) -> None:
        super().__init__()
        self.net = _mlp((2, hidden, 2), nn.LeakyReLU(0.3))
        for x in self.net[-1].parameters():
            nn.init.zeros_(x)

    def forward(self, x: Tensor) -> Tensor:
        """Return (h0, h1) in the last dim for (Taylor term, level)."""
        weight: Tensor = next(self.net.parameters())
        return x[..., :1] + self.net(x.to(weight.dtype)).to(x.dtype)
