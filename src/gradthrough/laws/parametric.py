"""What the laws that are no choice among classes share: parameters, and points from uniforms."""

import abc
from functools import reduce
from typing import ClassVar, Self

import torch
from torch import Tensor

from .._errors import UnsupportedError
from .._types import FLOATS, NoiseKind, compute_dtype
from .law import Law, Move


class Parametric(Law):
    r"""Independent variables of a law of ``torch.distributions``, made from uniforms.

    A *raw* point is the point before rounding to the dtype of the parameters, or its logarithm
    where a number has no room for it. Densities and moves are computed with raw points, in
    float64: in the dtype of the parameters, loc + scale x may have no digits of x left. A sample
    that carries its own gradient is computed in float32 or better.

    Args:
        parameters: one tensor for each of `names`, (\*batch, \*event[, K]).
        event_dims: how many trailing dims are seen jointly by f.
        dtype: of the points; by default that of the parameters.

    Raises:
        UnsupportedError: a parameter that is not float64, float32, bfloat16 or float16.
    """

    uniforms: ClassVar[int] = 1  # for the sample of a variable
    spare: ClassVar[int] = 0  # more of them, for its moves
    point_dims: ClassVar[int] = 0
    without_score: ClassVar[str] = ""  # why there is none

    def __init__(
        self,
        parameters: tuple[Tensor, ...],
        event_dims: int = 0,
        dtype: torch.dtype | None = None,
    ) -> None:
        for name, x in zip(self.names, parameters, strict=True):
            if x.dtype not in FLOATS:
                raise UnsupportedError(
                    f"{name} must be float64, float32, bfloat16 or float16, but is {x.dtype}. "
                    f"Convert it: {name}.float()."
                )
        self._parameters = parameters
        self.event_dims = event_dims
        self.dtype = dtype or reduce(torch.promote_types, (x.dtype for x in parameters))

    def __repr__(self) -> str:
        shapes = (
            f"{n}={tuple(x.shape)}" for n, x in zip(self.names, self._parameters, strict=True)
        )
        return f"{type(self).__name__}({', '.join(shapes)}, event_dims={self.event_dims})"

    @property
    def parameters(self) -> tuple[Tensor, ...]:
        """The tensors that receive gradients, in the order of `names`."""
        return self._parameters

    def with_parameters(self, *parameters: Tensor) -> Self:
        """Return the same law with other parameters."""
        return type(self)(parameters, self.event_dims, self.dtype)

    @property
    def variables(self) -> tuple[int, ...]:
        r"""Shape of the variables, (\*batch, \*event)."""
        shape = self._parameters[0].shape
        return tuple(shape[: len(shape) - self.point_dims])

    @property
    def _each(self) -> int:
        """How many uniforms the sample of a variable takes."""
        return self.uniforms

    def noise_shape(self, kind: NoiseKind) -> tuple[int, ...]:
        """Return the shape of the uniforms: those of a variable in a last dim, if several."""
        return (*self.variables, self._each) if self._each > 1 else self.variables

    def moves_noise_shape(self) -> tuple[int, ...]:
        """Return the shape of the uniforms that `moves` takes."""
        count = self._each + self.spare
        return (*self.variables, count) if count > 1 else self.variables

    def numbers(self, dtype: torch.dtype | None = None) -> tuple[Tensor, ...]:
        """Return the parameters in a dtype, by default theirs, but float32 or better."""
        best = dtype or torch.promote_types(compute_dtype(self.dtype), self._parameters[0].dtype)
        return tuple(x.to(best) for x in self._parameters)

    @abc.abstractmethod
    def raw(self, noise: Tensor) -> Tensor:
        """Return raw points, with the graph of the parameters where there is one."""

    def point(self, raw: Tensor) -> Tensor:
        """Return the point of a raw one."""
        return raw.to(self.dtype)

    @abc.abstractmethod
    def log_density(self, raw: Tensor) -> Tensor:
        """Return the log-density at the points of raw ones, variable by variable."""

    def _precise(self) -> Self:
        """Return the law without the graph of its parameters, in float64 but for its points."""
        return self.with_parameters(*(x.detach().to(torch.float64) for x in self._parameters))

    def draw(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Return points without a graph, and raw."""
        one = self._precise()
        raw = one.raw(noise.detach())
        return one.point(raw), raw

    def precise_log_prob(self, z: Tensor) -> Tensor:
        r"""Return the log-density (..., \*batch) of raw points."""
        return self._sum_event(self.log_density(z))

    def check_score(self) -> None:
        """Refuse a law whose support moves with its parameters."""
        if self.without_score:
            raise UnsupportedError(
                f"{type(self).__name__} has no score-function estimator: {self.without_score}. Use "
                "gradthrough.Pathwise() or gradthrough.MeasureValued()."
            )

    def moves(self, noise: Tensor) -> tuple[Tensor, list[Move]]:
        """Return samples, and the terms of the measure-valued derivative, one for each `moved`."""
        one, u, each = self._precise(), noise.detach(), self._each
        own = u if each + self.spare == 1 else u[..., 0] if each == 1 else u[..., :each]
        raw = one.raw(own)
        terms = one.raw_moves(raw, u[..., each:] if self.spare else u)
        return one.point(raw), [Move(weight, one.point(x)) for weight, x in terms]

    def raw_moves(self, raw: Tensor, spare: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Return the weights and raw points of the moves, from as many uniforms as `spare` says."""
        return []
