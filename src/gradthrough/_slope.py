"""value_and_slope: a function of points, and its gradient there, outside and inside transforms."""

from collections.abc import Callable

import torch
from torch import Tensor


def in_transform() -> bool:
    """Return whether torch.func or torch.compile is looking: autograd.grad is not for those."""
    active: bool = torch._C._are_functorch_transforms_active()  # pyright: ignore[reportPrivateUsage, reportUnknownMemberType, reportAttributeAccessIssue]
    return active or torch.compiler.is_compiling()


def value_and_slope(
    f: Callable[[Tensor], Tensor], points: Tensor, *, graph: bool = False
) -> tuple[Tensor, Tensor | None]:
    r"""Return the values of f and the gradient of each in its own point.

    Args:
        f: points (N, ...) to values (N, \*batch), every value a function of its own point.
        points: (N, ...). Outside transforms, a tensor that requires a gradient is used as it is,
            so that with `graph` the results can be differentiated in it.
        graph: keep the graph of the gradient. Not inside transforms.

    Returns:
        The values, with the graph of whatever else f uses, and the gradient, shape of the
        points; None where the values do not depend differentiably on the points.
    """
    if not in_transform():
        x = points if points.requires_grad else points.detach().requires_grad_()
        values = f(x)
        if not values.requires_grad:
            return values, None
        (slope,) = torch.autograd.grad(
            values,
            x,
            torch.ones_like(values),
            retain_graph=True,
            create_graph=graph,
            allow_unused=True,
        )
        return values, slope
    depends = False

    def noted(x: Tensor) -> Tensor:
        nonlocal depends
        values = f(x)
        # At this level of the transform only the points require a gradient.
        depends = values.requires_grad
        return values

    values, pull, *_ = torch.func.vjp(noted, points.detach())
    (slope,) = pull(torch.ones_like(values))
    return values, slope if depends else None
