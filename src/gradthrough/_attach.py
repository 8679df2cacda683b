"""attach: a value with a chosen gradient, for estimators that look at the values of f."""

from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd import Function, forward_ad

from ._errors import UnsupportedError

_SECOND = (
    "the gradient of a score-function estimate is a number, not a function of the logits, so its "
    "own derivative would be silently wrong. Use a pathwise estimator or Enumerate where a second "
    "derivative is needed."
)
_TRACED = (
    " torch.compile asks for one as soon as what it calls, a transform included, is given a tensor "
    "that requires a gradient: detach it, or make the call under torch.no_grad()."
)
_FORWARD = (
    "forward mode around torch.compile: what is compiled loses the tangents, in torch itself. Put "
    "the transform inside: torch.compile(lambda x, t: torch.func.jvp(loss, (x,), (t,)))."
)


class _Once(Function):
    """Pass a gradient on; refuse to be differentiated itself.

    It hangs on x, and on the value, whose graph leads to the parameters of f: the gradient in x
    depends on both.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(grad: Tensor, x: Tensor, value: Tensor) -> Tensor:
        return grad.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        raise UnsupportedError(_SECOND + (_TRACED if torch.compiler.is_compiling() else ""))

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        raise UnsupportedError(_SECOND)


class _Attach(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(value: Tensor, x: Tensor, grad: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        value, x, grad = inputs
        ctx.lead = value.ndim
        ctx.save_for_backward(x, grad, value)
        ctx.save_for_forward(x, grad, value)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        x, grad, value = ctx.saved_tensors
        (g,) = grads
        if not ctx.needs_input_grad[1]:
            return g, None, None
        scaled = g.reshape(g.shape + (1,) * (x.ndim - ctx.lead)).to(grad.dtype) * grad
        g_x = scaled.to(x.dtype)
        if torch.is_grad_enabled() and not torch.compiler.is_dynamo_compiling():
            g_x = cast(Tensor, _Once.apply(g_x, x, value))
            # What the parameters of f get depends on x too, through the law of the points.
            g = cast(Tensor, _Once.apply(g, x, value.detach()))
        return g, g_x, None


class _AttachBothModes(_Attach):
    """With forward mode, which torch.compile cannot trace."""

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        x, grad, value = ctx.saved_tensors
        t_value, t_x, _ = tangents
        once = cast(Tensor, _Once.apply(grad, x, value))
        out, dims = t_x * once, tuple(range(ctx.lead, x.ndim))
        out = out.sum(dims) if dims else out  # no dims would be all of them
        return out if t_value is None else t_value + out.to(t_value.dtype)


def attach(value: Tensor, x: Tensor, grad: Tensor) -> Tensor:
    r"""Return `value`, whose derivative in `x` is declared to be `grad`.

    Formula: forward ``value``; backward ``g`` goes to value unchanged and ``g * grad`` to x.

    Args:
        value: (\*lead), with or without a graph of its own, which is kept.
        x: (\*lead, \*rest), what the gradient goes to.
        grad: shape of x: row by row, the derivative of the value in that row of x.

    Returns:
        The value, same shape, dtype and numbers.

    Raises:
        UnsupportedError: when the gradient is differentiated once more.

    Example:
        >>> import torch
        >>> from gradthrough._attach import attach
        >>> x = torch.zeros(2, 3, requires_grad=True)
        >>> attach(torch.ones(2), x, torch.full((2, 3), 5.0)).sum().backward()
        >>> x.grad
        tensor([[5., 5., 5.],
                [5., 5., 5.]])
    """
    door = _Attach if _is_read() else _AttachBothModes
    return cast(Tensor, door.apply(value, x, grad.detach()))


class _Substitute(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(value: Tensor, surrogate: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.dtype = inputs[1].dtype

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return None, grads[0].to(ctx.dtype)


class _SubstituteBothModes(_Substitute):
    """With forward mode, which torch.compile cannot trace."""

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        return tangents[1]


def substitute(value: Tensor, surrogate: Tensor) -> Tensor:
    r"""Return `value`, bit for bit, with the derivatives of `surrogate`, to every order.

    Args:
        value: any shape, a constant.
        surrogate: same shape, with the graph that the value shall have.

    Example:
        >>> import torch
        >>> from gradthrough._attach import substitute
        >>> x = torch.zeros(3, requires_grad=True)
        >>> substitute(torch.ones(3), x.sin()).sum().backward()
        >>> x.grad
        tensor([1., 1., 1.])
    """
    door = _Substitute if _is_read() else _SubstituteBothModes
    return cast(Tensor, door.apply(value.detach(), surrogate))


def _is_read() -> bool:
    """Return whether torch.compile reads this code, and may read the doors, too.

    Under a transform it may not: it would lose their backward and differentiate their forward.
    There they go into its graph as they are, and the transform finds all their rules.
    """
    if not torch.compiler.is_dynamo_compiling():
        return False
    # What torch's own Function.apply asks; there is no public way to.
    if torch._C._are_functorch_transforms_active():  # pyright: ignore[reportPrivateUsage]
        _into_the_graph()
        return False
    if forward_ad._current_level >= 0:  # pyright: ignore[reportPrivateUsage]
        raise UnsupportedError(_FORWARD)
    return True


def _into_the_graph() -> None:
    torch.compiler.allow_in_graph([_AttachBothModes, _SubstituteBothModes])


# The tracer calls the function instead of reading it. torch.compiler.assume_constant_result sets
# the same, but would import the compiler, which takes as long as torch, along with the library.
_into_the_graph.__dict__["_dynamo_marked_constant"] = True
