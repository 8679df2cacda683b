"""Gumbel-Sinkhorn: doubly stochastic matrices, and permutations with their Jacobian."""

from importlib import import_module
from types import ModuleType
from typing import Any, cast

import torch
from torch import Tensor

from .._attach import substitute
from .._errors import BackendError, DomainError, ShapeError
from .._random import gumbels
from .._types import compute_dtype
from ..estimators.checks import check_count, check_logits, check_positive, check_switch
from ..kernels.checks import check_content, check_rows
from ..kernels.softmax import centre
from .checks import draw
from .scaling import scaled


def sinkhorn(scores: Tensor, tau: float = 1.0, iterations: int = 20) -> Tensor:
    r"""Scale ``exp(scores / tau)`` until its rows and columns sum to 1, in log space.

    Rows and columns are normalised in turn, the columns last. A constant added to a row or, as the
    iterations go on, to a column changes nothing. As tau goes to 0 the limit becomes the
    permutation with the greatest sum of scores, and takes ever more iterations.

    Args:
        scores: (\*batch, n, n); -inf forbids an entry.
        tau: temperature, above 0.
        iterations: at least 1. The backward keeps one matrix and two vectors for each iteration.

    Returns:
        Shape and dtype of the scores. Columns sum to 1, rows nearly, once there were enough
        iterations. Differentiable to every order.

    Raises:
        ShapeError: matrices that are not square.
        DomainError: NaN or +inf, a row or column of -inf, tau not above 0, no iteration.
        UnsupportedError: scores of another dtype.

    Example:
        >>> import torch, gradthrough as gt
        >>> gt.structured.sinkhorn(torch.tensor([[2.0, 0.0], [0.0, 0.0]]))
        tensor([[0.7311, 0.2689],
                [0.2689, 0.7311]])

    Reference:
        Mena, Belanger, Linderman, Snoek, ICLR 2018, arXiv:1802.08665.
    """
    return _scale(_sound(scores), tau, iterations).to(scores.dtype)


def gumbel_sinkhorn(
    scores: Tensor,
    tau: float = 1.0,
    *,
    iterations: int = 20,
    hard: bool = False,
    generator: torch.Generator | None = None,
    noise: Tensor | None = None,
) -> Tensor:
    r"""Draw a relaxed permutation, or a hard one with its Jacobian.

    ``sinkhorn((scores + G) / tau)`` with Gumbel noise G for each entry. With hard=True forward the
    permutation that maximises ``sum P * (scores + G)`` (on the CPU, by SciPy, in O(n^3)), backward
    the Jacobian of the relaxed one. Biased, and no exact sample of
    ``p(P) proportional to exp(sum P * scores)``: what is drawn follows the law that perturbing the
    entries makes.

    Args:
        scores: (\*batch, n, n); -inf forbids an entry.
        tau: temperature, above 0.
        iterations: of `sinkhorn`, at least 1.
        hard: return permutations, exactly 0 or 1.
        generator: source of the noise.
        noise: float64 uniforms (\*batch, n, n) in [0, 1) instead.

    Returns:
        Shape and dtype of the scores; P[i, j] is 1 where row i goes to column j.

    Raises:
        ShapeError: matrices that are not square, noise of another shape.
        DomainError: NaN or +inf, tau not above 0, no iteration, a row or column of -inf; with
            hard=True scores that forbid every permutation.
        UnsupportedError: scores or noise of another dtype.
        BackendError: hard=True without SciPy.

    Example:
        >>> import torch, gradthrough as gt
        >>> scores = torch.zeros(5, 4, 4, requires_grad=True)
        >>> soft = gt.structured.gumbel_sinkhorn(scores, tau=0.5)
        >>> soft.sum(-2).allclose(torch.ones(5, 4))
        True
        >>> soft.square().sum().backward()

    Reference:
        Mena, Belanger, Linderman, Snoek, ICLR 2018, arXiv:1802.08665.
    """
    check_switch("hard", hard)
    if hard:
        _check_solver()
    x = _sound(scores)
    u = draw(tuple(scores.shape), scores, generator, noise)
    perturbed = x + gumbels(u, x.dtype)
    soft = _scale(perturbed, tau, iterations)
    if not hard:
        return soft.to(scores.dtype)
    permutation = _permutation(perturbed.detach())
    check_content(permutation, _check_possible)
    return substitute(permutation.to(scores.dtype), soft.to(scores.dtype))


def _sound(scores: object) -> Tensor:
    """Return scores in float32 or better, each matrix less its maximum, or say what is wrong."""
    checked = check_logits(scores, -1)
    if checked.ndim < 2 or checked.shape[-1] != checked.shape[-2]:
        remedy = (
            "Give one row of n scores for each of n items."
            if checked.ndim < 2
            else "Pad the shorter side with a constant: what is matched to it is left out."
        )
        raise ShapeError(
            f"scores must have shape (*batch, n, n), but have {tuple(checked.shape)}. {remedy}"
        )
    check_rows(checked)
    check_rows(checked.mT)
    x = checked.to(compute_dtype(checked.dtype))
    return centre(x.flatten(-2)).reshape(x.shape)


def _scale(x: Tensor, tau: float, iterations: int) -> Tensor:
    check_count("iterations", iterations, 1)
    return scaled(x / check_positive("tau", tau), iterations)


def _solver() -> ModuleType:
    return import_module("scipy.optimize")


def _check_solver() -> None:
    try:
        _solver()
    except ImportError as error:
        raise BackendError(
            "hard=True matches rows and columns with SciPy, which is not installed: pip install "
            "scipy. The relaxed point, hard=False, needs torch alone."
        ) from error


def _assign(scores: Tensor) -> Tensor:
    """Return the permutations that maximise the scores, NaN where there is none."""
    solve: Any = _solver().linear_sum_assignment
    flat = scores.reshape(-1, *scores.shape[-2:]).cpu()
    out = torch.zeros_like(flat)
    for matrix, permutation in zip(flat.numpy(), out, strict=True):
        try:
            row, column = solve(matrix, maximize=True)
            permutation[torch.from_numpy(row), torch.from_numpy(column)] = 1.0
        except ValueError:  # NaN, or no permutation that avoids the masked entries
            permutation.fill_(torch.nan)
    return out.reshape(scores.shape).to(scores.device)


def _like(scores: Tensor) -> Tensor:
    return torch.empty(scores.shape, dtype=scores.dtype, device=scores.device)


def _mapped(info: object, in_dims: tuple[int | None], scores: Tensor) -> tuple[Tensor, int]:
    return torch.ops.gradthrough.assignment(scores.movedim(in_dims[0] or 0, 0)), 0


def _define() -> None:
    """Make an operator of `_assign`: SciPy cannot be traced, but a graph and vmap can hold it.

    When it is first wanted, since importing the library adds nothing to torch.
    """
    if hasattr(torch.ops.gradthrough, "assignment"):
        return
    operator = torch.library.custom_op("gradthrough::assignment", _assign, mutates_args=())
    operator.register_fake(_like)
    operator.register_vmap(_mapped)


def _permutation(scores: Tensor) -> Tensor:
    _define()
    return cast(Tensor, torch.ops.gradthrough.assignment(scores))


# The tracer calls the functions instead of reading them; as in _attach, where the reason is.
_check_solver.__dict__["_dynamo_marked_constant"] = True
_define.__dict__["_dynamo_marked_constant"] = True


def _check_possible(permutation: Tensor) -> None:
    bad = permutation.isnan().any(-1).any(-1)
    if bool(bad.any()):
        raise DomainError(
            f"{int(bad.sum())} of {bad.numel()} matrices of scores forbid (-inf) every "
            "permutation. Leave at least one entry in each row that no other row needs."
        )
