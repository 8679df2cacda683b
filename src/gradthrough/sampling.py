"""sample: one sample of bare logits, with the gradient of any pathwise estimator."""

from __future__ import annotations

import torch
from torch import Tensor

from ._errors import ConfigError, UnsupportedError
from ._random import Stream, exponentials, uniforms
from ._types import NoiseKind
from .estimators.base import AbstractEstimator
from .estimators.pathwise import AbstractLaunched, AbstractPathwise, run_kernel, sample_along
from .kernels.dispatch import interval_ends, launch_indexed, probabilities
from .kernels.eager import GumbelSoftmax as GumbelMax


def sample(
    logits: Tensor,
    estimator: AbstractEstimator,
    *,
    dim: int = -1,
    generator: torch.Generator | None = None,
    noise: Tensor | None = None,
    like_torch: bool = False,
) -> Tensor:
    r"""Draw one sample for each row of logits, with the estimator's gradient.

    What the estimator's plain function does (``gt.reinmax`` for ``gt.ReinMax()``), for code that
    is handed an estimator.

    Args:
        logits: any shape, classes along `dim`; -inf masks a class.
        estimator: a pathwise one, whose sample carries the gradient.
        dim: the class dim.
        generator: source of the noise.
        noise: the noise instead: ``estimator.noise_shape`` says of which shape.
        like_torch: draw the numbers that ``torch.nn.functional.gumbel_softmax`` would, and from
            them its sample (on CPU bit for bit the same), whatever noise the estimator is made
            for: one draw for each class. An estimator whose law is only close to
            softmax(logits), such as ReDGE, draws its own.

    Returns:
        Shape and dtype of the logits: one-hot along `dim`, or soft where the estimator says so.

    Raises:
        UnsupportedError: the estimator's sample carries no gradient; logits of another dtype.
        DomainError: NaN or +inf logits, a row with every class masked.
        ShapeError: no such dim, no class, noise of the wrong shape.
        ConfigError: like_torch with noise.
        BackendError: generator or noise on another device.

    Example:
        >>> import torch, gradthrough as gt
        >>> logits = torch.zeros(2, 3, requires_grad=True)
        >>> gt.sample(logits, gt.ReinMax(tau=1.3)).sum(-1).tolist()
        [1.0, 1.0]
    """
    one = check_pathwise(estimator)
    kind = one.traits.noise

    def run(rows: Tensor, u: Tensor | Stream, given: bool) -> Tensor:
        if isinstance(one, AbstractLaunched):
            one.check_classes(rows.shape[-1])
            return run_kernel(one.kernel, rows, u, given=given, dim=dim)
        return one.sample(rows, u.all() if isinstance(u, Stream) else u)

    def raced(rows: Tensor, u: Tensor, given: bool) -> Tensor:
        return run(rows, race(rows, u, kind), False)

    if like_torch and noise is not None:
        raise ConfigError("like_torch=True draws its own noise, but noise= came too. Pass one.")
    if like_torch and kind in ("variable", "variable+seed"):
        return sample_along("class", raced, logits, dim=dim, generator=generator, noise=None)
    draw = Stream if kind == "class" and isinstance(one, AbstractLaunched) else uniforms
    return sample_along(kind, run, logits, dim=dim, generator=generator, noise=noise, draw=draw)


def check_pathwise(estimator: object) -> AbstractPathwise:
    """Refuse what has no sample that carries a gradient."""
    if isinstance(estimator, AbstractPathwise):
        return estimator
    if isinstance(estimator, AbstractEstimator):
        pathwise, served = estimator.traits.pathwise, ", ".join(sorted(estimator.traits.families))
        why = f"the laws that it serves are {served}" if pathwise else "it needs the values of f"
        raise UnsupportedError(
            f"{type(estimator).__name__} has no sample that carries a gradient here: {why}. "
            "Use gradthrough.expect(f, dist, estimator), or take a pathwise estimator of classes, "
            "such as gradthrough.ReinMax()."
        )
    hint = ""
    if isinstance(estimator, type) and issubclass(estimator, AbstractEstimator):
        hint = f" Instantiate it: {estimator.__name__}()."
    elif isinstance(estimator, str):
        hint = f" Build it: gradthrough.estimator({estimator!r})."
    raise UnsupportedError(f"expected an estimator, but {estimator!r} came.{hint}")


def race(rows: Tensor, u: Tensor, kind: NoiseKind) -> Tensor:
    r"""Turn a uniform for each class into noise that draws the class of the Gumbel-max trick.

    Among ``E_c / pi_c`` with ``E_c = -log1p(-u_c)`` the least, say M, stands at the argmax D of
    theta + G. M is Exp(1) whatever D is, so ``1 - exp(-M)`` is a uniform to seed inner draws with.

    Args:
        rows: logits (\*rows, C).
        u: uniforms of that shape.
        kind: "variable" or "variable+seed".

    Returns:
        Uniforms (\*rows), the middle of the interval that draws D; with the seed (\*rows, 2).
    """
    rows = rows.detach()
    _, index = launch_indexed(GumbelMax(1.0), rows, u, given=False)
    at = index.unsqueeze(-1)
    ends = interval_ends(rows)
    starts = torch.nn.functional.pad(ends[..., :-1], (1, 0))
    middle = ((starts + ends) / 2.0).gather(-1, at).squeeze(-1)
    if kind == "variable":
        return middle
    pi = probabilities(rows).double().gather(-1, at).squeeze(-1)
    least = exponentials(u, torch.float64).gather(-1, at).squeeze(-1) / pi
    return torch.stack((middle, torch.expm1(-least).neg().clamp(0.0, 1.0 - 2.0**-53)), -1)
