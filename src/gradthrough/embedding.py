"""embed: from logits over a vocabulary to the embedding of a sampled token, gradient included."""

from typing import Literal, overload

import torch
from torch import Tensor

from ._errors import BackendError, ShapeError, UnsupportedError
from ._random import noise_shape, uniforms
from ._types import Backend
from .estimators.checks import check_logits, check_switch
from .estimators.pathwise import AbstractLaunched
from .estimators.tempered import temperature_of
from .kernels.dispatch import launch
from .kernels.engines import engine_for
from .kernels.lookup import lookup
from .kernels.transforms import transformed
from .laws.base import check_noise


@overload
def embed(
    logits: Tensor,
    weight: Tensor,
    estimator: AbstractLaunched,
    *,
    generator: torch.Generator | None = None,
    noise: Tensor | None = None,
    backend: Backend = "auto",
    with_index: Literal[False] = False,
) -> Tensor: ...
@overload
def embed(
    logits: Tensor,
    weight: Tensor,
    estimator: AbstractLaunched,
    *,
    generator: torch.Generator | None = None,
    noise: Tensor | None = None,
    backend: Backend = "auto",
    with_index: Literal[True],
) -> tuple[Tensor, Tensor]: ...
def embed(
    logits: Tensor,
    weight: Tensor,
    estimator: AbstractLaunched,
    *,
    generator: torch.Generator | None = None,
    noise: Tensor | None = None,
    backend: Backend = "auto",
    with_index: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    r"""Draw a class for each row and look its embedding up, with the estimator's gradients.

    Formula: ``z @ W`` with z the estimator's hard sample; backward ``z^T g`` to W, and to the
    logits the estimator's Jacobian times ``g W^T``. The one-hot z is never made: the forward
    gathers rows of W, the backward adds to them, and ``g W^T`` is held for some rows at a time.
    What is kept for the backward is the logits, W and the classes (and for straight-through
    Gumbel-Softmax its relaxed point).

    Under transforms of ``torch.func``, in forward mode and in ``torch.compile``, z is made after
    all; the result is the same for a finite W.

    Args:
        logits: (\*rows, C); -inf masks a class. C may exceed 2^24.
        weight: (C, E), floating point, of any dtype.
        estimator: a pathwise one with a hard sample from one softmax: ``gt.ReinMax()``,
            ``gt.StraightThrough()``, ``gt.StraightThroughGumbelSoftmax()``, ...
        generator: source of the noise.
        noise: the noise instead, as ``estimator`` takes it for rows of these shapes.
        backend: "auto", or by name what shall run.
        with_index: return the class of each row, too.

    Returns:
        (\*rows, E), in the dtype of the weight; and, if asked for, the classes (\*rows), int64.

    Raises:
        ShapeError: the weight is no matrix with C rows, noise of the wrong shape.
        DomainError: NaN or +inf logits, a row with every class masked.
        UnsupportedError: another kind of estimator, a dtype that is not floating point, a second
            derivative.
        BackendError: generator, noise or weight on another device, unknown backend.

    Example:
        >>> import torch, gradthrough as gt
        >>> logits = torch.zeros(5, 32_000, requires_grad=True)
        >>> table = torch.randn(32_000, 16, requires_grad=True)
        >>> vectors, tokens = gt.embed(logits, table, gt.ReinMax(), with_index=True)
        >>> vectors.shape, tokens.shape, bool((vectors == table[tokens]).all())
        (torch.Size([5, 16]), torch.Size([5]), True)
        >>> vectors.sum().backward()
    """
    check_logits(logits, -1)
    check_switch("with_index", with_index)
    _check_weight(weight, logits)
    _check_estimator(estimator)
    if temperature_of(estimator.kernel) is not None:
        raise UnsupportedError("embed takes a number for tau, but a tensor came.")
    estimator.check_classes(logits.shape[-1])
    kind, kernel = estimator.traits.noise, estimator.kernel
    shape = noise_shape(kind, tuple(logits.shape[:-1]), logits.shape[-1])
    given = noise is not None
    u = check_noise(noise, shape, logits, generator) if given else None
    if u is None:
        u = uniforms(shape, logits.device, generator)
    if torch.compiler.is_compiling() or transformed(logits) or transformed(weight):
        z = launch(kernel, logits, u, given=given, backend=backend).to(weight.dtype)
        out = (z @ weight).to(weight.dtype)
        return (out, z.detach().argmax(-1)) if with_index else out
    engine = engine_for(backend, kernel, logits)
    out, index = lookup(engine, kernel, logits, weight, u, given)
    return (out, index) if with_index else out


def _check_weight(weight: object, logits: Tensor) -> None:
    if not isinstance(weight, Tensor) or not weight.is_floating_point():
        came = getattr(weight, "dtype", type(weight).__name__)
        raise UnsupportedError(f"weight must be a floating-point tensor, but {came} came.")
    if weight.ndim != 2 or weight.shape[0] != logits.shape[-1]:
        raise ShapeError(
            f"weight must have shape (C, E) = ({logits.shape[-1]}, E) for logits of shape "
            f"{tuple(logits.shape)}, but has {tuple(weight.shape)}."
        )
    if weight.device != logits.device:
        raise BackendError(
            f"weight lives on {weight.device}, but the logits on {logits.device}. "
            "Move it: weight.to(logits.device)."
        )


def _check_estimator(estimator: object) -> None:
    if not isinstance(estimator, AbstractLaunched):
        raise UnsupportedError(
            "embed takes an instance of a pathwise estimator that samples from one softmax, "
            f"gradthrough.ReinMax() say, but {estimator!r} came. Others can serve through "
            "expect, with f(z) = ... z @ weight."
        )
    if estimator.traits.relaxed:
        raise UnsupportedError(
            f"{type(estimator).__name__} samples a relaxed point, which mixes all embeddings: "
            "there is none to look up. Take gradthrough.StraightThroughGumbelSoftmax(), or write "
            "gradthrough.gumbel_softmax(logits) @ weight."
        )
