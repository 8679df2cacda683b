"""Coupled pairs of categorical samples: DisARM-IW, DisARM-SB and DisARM-Tree."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from .._errors import ConfigError
from .._random import antithetic
from ..kernels.dispatch import probabilities
from ..kernels.sticks import Sticks, first_stop, points_at, sticks, unsort
from ..kernels.tree import Tree, Walk, depth_for, to_classes, tree, walk
from ..laws.base import Distribution
from .base import DISCRETE, AbstractEstimator, Draw, Estimate, Traits, learning_signal, send, spread

Kind = Literal["iw", "sb", "tree"]


@dataclass(frozen=True)
class Coupled(AbstractEstimator):
    r"""Coupled categorical samples (DisARM-IW, -SB, -Tree): an antithetic pair. Unbiased.

    A categorical sample is made of binary decisions, each taken with a uniform u by z and with
    1 - u by z~. The classes are always sorted ascending. Each of the N samples is such a pair:
    2N evaluations.

    * "iw": decisions "stop at this class?". RLOO on the pair, ``1/2 w (f(z) - f(z~))(D - D~)``,
      with the exact importance weight w of a coupled against an independent pair.
    * "sb": the same decisions; each gets the DisARM gradient as long as both walks take it, the
      gradient of REINFORCE with the other sample as baseline afterwards.
    * "tree": decisions down a balanced tree, gradients as for "sb".

    Args:
        kind: "iw", "sb" or "tree".

    Raises:
        ConfigError: unknown kind.

    Example:
        >>> import torch, gradthrough as gt
        >>> f = lambda z: z.argmax(-1).float()  # no gradient of f is needed
        >>> logits = torch.zeros(5, 3, requires_grad=True)
        >>> gt.expect(f, logits, gt.Coupled("tree")).sum().backward()
        >>> logits.grad.shape
        torch.Size([5, 3])

    Reference:
        Dong, Mnih, Tucker, NeurIPS 2021, arXiv:2106.08056.
    """

    kind: Kind = "iw"

    traits: ClassVar[Traits] = Traits(
        unbiased=True,
        families=DISCRETE,
        reference="Dong et al., NeurIPS 2021, arXiv:2106.08056",
        exact_for="all",
        noise="class-1",
    )

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise ConfigError(f"kind is {self.kind!r}, but must be 'iw', 'sb' or 'tree'.")

    def noise_shape(self, dist: Distribution) -> tuple[int, ...]:
        r"""Return (samples, \*batch, \*event, decisions): C - 1, for a tree 2^depth - 1."""
        if self.kind == "tree":
            return (*dist.variables, 2 ** depth_for(dist.classes) - 1)
        return super().noise_shape(dist)

    def evaluations(self, dist: Distribution, samples: int) -> int:
        """Return how often f is evaluated: twice for each sample."""
        return 2 * samples

    def draw(self, dist: Distribution, noise: Tensor) -> Draw:
        """Draw z for every sample, then z~."""
        p = probabilities(dist.row.class_logits().detach())
        both = torch.cat((noise, antithetic(noise)))
        s = sticks(p)
        if self.kind == "tree":
            # Leaves that only fill the tree up come first.
            place = walk(tree(s), both).leaf - (2 ** depth_for(dist.classes) - dist.classes)
            place = place.clamp_min(0)  # in an unsound row alone
        else:
            place = first_stop(both < s.sigma)
        points = dist.from_classes(points_at(place, s, dist.logits.dtype))
        return Draw(points, dist, (p, place, both, *s))

    def combine(
        self, draws: Sequence[Draw], values: Tensor, point_gradients: Tensor | None = None
    ) -> Estimate:
        """Send the difference of each pair, shared out over its decisions."""
        (one,) = draws
        p, place, noise, *walked = one.aux
        s = Sticks(*walked)
        f, f_tilde = learning_signal(values).chunk(2)
        half = spread(0.5 * (f - f_tilde), one.dist.event_dims + 1).to(torch.float64)
        if self.kind == "tree":
            gradient = _tree_gradient(tree(s), noise, half) + 0.0 * p
        else:
            z, z_tilde = (x.unsqueeze(-1) for x in place.chunk(2))
            each = _importance if self.kind == "iw" else _stick_breaking
            gradient = unsort(each(s, z, z_tilde, half).mean(0), s.order)
        gradient = gradient.to(p.dtype)
        return send(one, values.mean(0), one.dist.from_classes(gradient))


def _places(s: Sticks) -> Tensor:
    return torch.arange(s.p.shape[-1], device=s.p.device)


def _importance(s: Sticks, z: Tensor, z_tilde: Tensor, half: Tensor) -> Tensor:
    """Return w/2 (f - f~)(D - D~) at the sorted places."""
    # The last stick is never passed by a pair that still differs: its 1 - 2 sigma may be 0.
    stay, go = (1.0 - s.sigma)[..., :-1], (1.0 - 2.0 * s.sigma)[..., :-1]
    ones = torch.ones_like(s.p[..., :1])
    passed = torch.cat((ones, (stay.square() / go).cumprod(-1)), -1)[..., : s.sigma.shape[-1]]
    weights = torch.cat((passed * (1.0 - s.sigma), 0.0 * ones), -1)
    earlier = torch.minimum(z, z_tilde)
    weight = weights.expand(*z.shape[:-1], weights.shape[-1]).gather(-1, earlier)
    at = _places(s)
    difference = (at == z).to(weight.dtype) - (at == z_tilde).to(weight.dtype)
    return weight * half * difference + 0.0 * s.p


def _stick_breaking(s: Sticks, z: Tensor, z_tilde: Tensor, half: Tensor) -> Tensor:
    """Return the gradient in the logits at the sorted places, through the sticks' log-odds."""
    at = _places(s)[:-1]
    earlier = torch.minimum(z, z_tilde)
    sign = torch.where(z < z_tilde, 1.0, -1.0)  # of b - b~ where the walks part
    longer = torch.maximum(z, z_tilde)
    parted = sign * (1.0 - s.sigma)
    alone = -sign * ((at == longer).to(s.sigma.dtype) - s.sigma)
    sticks_ = torch.where(at == earlier, parted, torch.where(at > earlier, alone, 0.0))
    sticks_ = half * torch.where((at <= longer) & (z != z_tilde), sticks_, 0.0)
    # a_i = theta_i - logsumexp(theta after i): each class pays its share of the sums before it.
    shares = (sticks_ / s.tail[..., 1:]).cumsum(-1)
    zero = torch.zeros_like(shares[..., :1]) if shares.shape[-1] else 0.0 * half
    before = torch.cat((zero, shares), -1)
    return torch.cat((sticks_, zero), -1) - s.p * before


def _tree_gradient(t: Tree, noise: Tensor, half: Tensor) -> Tensor:
    """Return the gradient in the logits, averaged over the pairs, through the nodes' log-odds."""
    u, u_tilde = noise.chunk(2)
    z, z_tilde = walk(t, u), walk(t, u_tilde)
    half = half.squeeze(-1)
    gradients: list[Tensor] = []
    for level in range(len(t.levels) - 1):
        shared = z.nodes[level] == z_tilde.nodes[level]
        sigma = z.left[level]
        together = (z.went[level] - z_tilde.went[level]) * torch.maximum(sigma, 1.0 - sigma)
        mine = half * torch.where(shared, together, _alone(z, level))
        other = -half * torch.where(shared, 0.0, _alone(z_tilde, level))
        zeros = torch.zeros(
            *half.shape[:1], *t.levels[level].shape, dtype=torch.float64, device=half.device
        )
        at = zeros.scatter_add(-1, z.nodes[level].unsqueeze(-1), mine.unsqueeze(-1))
        at = at.scatter_add(-1, z_tilde.nodes[level].unsqueeze(-1), other.unsqueeze(-1))
        gradients.append(at.mean(0))
    return to_classes(t, gradients)


def _alone(one: Walk, level: int) -> Tensor:
    return one.went[level] - one.left[level]
