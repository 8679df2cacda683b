"""Many estimates of one gradient, chunk by chunk, and the reference that they are held against."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .._errors import ConfigError, DomainError, ShapeError, UnsupportedError
from ..laws.base import Distribution
from .cost import peak_bytes
from .intervals import of_mean
from .moments import Moments, Target, group_count
from .problem import KINDS, AbstractProblem, Draws, Unbiased
from .rows import Reference
from .support import LIMIT

_CHUNK = 2**26  # bytes that the estimates of a chunk may hold together
_TOGETHER = 2**18  # numbers that gradients hold which are drawn one by one and summed together
_DRAWS = 50  # at least, of a reference that is drawn


def chunk_size(problem: AbstractProblem, one_bytes: int | None, chunk: int | None) -> int:
    """Return how many estimates are made at once."""
    if chunk is not None:
        return chunk
    if not problem.vectorised or not one_bytes:
        return max(1, min(16, _TOGETHER // problem.dimensions))
    return max(1, min(256, _CHUNK // one_bytes))


def moments_of(
    draw: Draws,
    *,
    replicates: int,
    chunk: int,
    generator: torch.Generator,
    groups: int,
    reference: Tensor | None = None,
) -> Moments:
    """Draw replicates and sum them up.

    A pilot of a sixteenth as many goes first: about its mean, squares are summed. It is not
    counted, so that the centre and what is centred are independent.

    Raises:
        UnsupportedError: a gradient that is not finite.
    """
    pilot = max(2, min(64, replicates // 16))
    centre, left = draw(1, generator)[0].double(), pilot - 1
    while left:
        part = draw(min(chunk, left), generator)
        centre, left = centre + part.double().sum(0), left - len(part)
    moments = Moments(centre / pilot, reference, groups)
    sound, broken = bool(centre.isfinite().all()), 0
    while moments.count < replicates and sound:
        n = min(chunk, replicates - moments.count)
        part = draw(n, generator)
        broken = int((~part.isfinite().all(-1)).sum())
        sound = not broken
        moments.add(part)
    if not sound:
        raise UnsupportedError(
            f"a gradient was not finite: NaN or inf in {broken or 'some'} of the first "
            f"{moments.count or pilot} estimates. Look at f near the points that this estimator "
            "asks for."
        )
    return moments


def reference_of(
    problem: AbstractProblem,
    kind: object,
    *,
    evaluations: int,
    replicates: int,
    chunk: int | None,
    generator: torch.Generator,
) -> tuple[Target, Reference]:
    """Return the gradient to hold estimators against: exact if that can be, or drawn without bias.

    Args:
        problem: whose gradient.
        kind: "auto", "exact", one of `KINDS`, or a gradient (D,).
        evaluations: of f for each row, that an estimate of the audit takes.
        replicates: how many of those the audit makes; a reference that is drawn takes four times
            as many evaluations as all of them.
        chunk: how many draws are made at once.
        generator: of the draws.
    """
    if isinstance(kind, Tensor):
        return _given(problem, kind)
    known = ("auto", "exact", *KINDS)
    if kind not in known:
        raise ConfigError(
            f"reference is {kind!r}, but must be one of {', '.join(map(repr, known))}, or the "
            "gradient itself as a tensor."
        )
    if kind in ("auto", "exact"):
        found = problem.exact()
        if found is not None:
            gradient, points = found
            norm = float(gradient.square().sum().sqrt())
            words = f"exact: the sum over all {points:,} points of each row."
            return Target(_sound(gradient)), Reference("exact", norm, 0.0, points, words)
        if kind == "exact":
            raise UnsupportedError(
                f"the exact gradient of this problem is out of reach ({problem.words}): "
                f"{_why_not(problem)}, or leave reference='auto'.{problem.caveat}"
            )
    budget = 4 * evaluations * replicates
    candidates = [one for one in problem.unbiased() if kind in ("auto", one.kind)]
    if not candidates:
        raise UnsupportedError(
            f"reference={kind!r} is out of reach for this problem ({problem.words}): none of its "
            "estimators serves these laws. Pass the gradient itself, as a tensor."
        )
    # The last one costs least: it is taken at any price.
    for one in candidates[:-1]:
        if kind != "auto" or one.cost * _DRAWS <= 4 * budget:
            return _drawn(problem, one, budget, replicates, chunk, generator)
    return _drawn(problem, candidates[-1], budget, replicates, chunk, generator)


def _drawn(
    problem: AbstractProblem,
    one: Unbiased,
    budget: int,
    replicates: int,
    chunk: int | None,
    generator: torch.Generator,
) -> tuple[Target, Reference]:
    draws = max(_DRAWS, budget // one.cost)
    held = peak_bytes(lambda: one.draw(1, generator))
    try:
        moments = moments_of(
            one.draw,
            replicates=draws,
            chunk=chunk_size(problem, held, chunk),
            generator=generator,
            groups=group_count(min(draws, replicates), problem.dimensions),
        )
    except UnsupportedError as error:
        raise UnsupportedError(f"no reference can be drawn by {one.words}: {error}") from error
    variance = of_mean(moments.squares)[0] / draws
    target = Target(_sound(moments.mean), moments.groups, variance)
    norm, error = math.sqrt(target.square), math.sqrt(variance)
    share = f"{100 * error / norm:.2g} % of its norm" if error < norm else "more than its norm"
    words = (
        f"drawn without bias: the mean of {draws:,} times {one.words}; its standard error, {share},"
        f" is part of every interval.{problem.caveat}"
    )
    return target, Reference(one.kind, norm, error, draws * one.cost, words)


def _why_not(problem: AbstractProblem) -> str:
    """Return why there is no exact gradient, and what to do."""
    endless = [type(q).__name__ for q in problem.laws if not isinstance(q, Distribution)]
    if endless:
        return f"a {endless[0]} has no finite sum. Pass the gradient itself, as a tensor"
    return (
        f"it is a sum over at most {LIMIT:,} points, all rows together, of laws that go through "
        "expect(f, dist). Audit fewer rows"
    )


def _given(problem: AbstractProblem, gradient: Tensor) -> tuple[Target, Reference]:
    if tuple(gradient.shape) not in (problem.shape, (problem.dimensions,)):
        raise ShapeError(
            f"reference has shape {tuple(gradient.shape)}, but the gradient, that of the batch "
            f"mean, has {problem.shape}. Pass it so, or flattened."
        )
    r = _sound(gradient.detach().double().flatten().to(problem.device))
    return Target(r), Reference(
        "given", float(r.square().sum().sqrt()), 0.0, 0, "given with the call."
    )


def _sound(gradient: Tensor) -> Tensor:
    if not bool(gradient.isfinite().all()):
        raise DomainError(
            "the reference gradient holds NaN or inf: f is not finite at some point that can be "
            "drawn, so no estimator can be right. Look at f at the corners."
        )
    return gradient
