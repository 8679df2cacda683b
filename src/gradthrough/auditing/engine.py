"""One audit: the reference first, then one estimator after the other, then what each costs."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Mapping

import torch
from torch import Tensor

from .._errors import GradthroughError
from ..estimators import AbstractEstimator
from ..estimators.checks import check_count
from .compare import compare, rounding
from .cost import halves, peak_bytes
from .intervals import holm
from .measure import chunk_size, moments_of, reference_of
from .moments import Target
from .problem import AbstractProblem
from .report import AuditReport
from .rows import AuditRow
from .tune import Search


@dataclasses.dataclass(frozen=True)
class Settings:
    """How much is measured.

    Args:
        evaluations: of f for each row, in one estimate, >= 1.
        replicates: estimates of each estimator, >= 20.
        reference: see `audit`.
        chunk: estimates made at once; None: as many as 64 MiB hold.
        seed: of the draws.
    """

    evaluations: int = 4
    replicates: int = 1000
    reference: str | Tensor = "auto"
    chunk: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        check_count("evaluations", self.evaluations, 1)
        check_count("replicates", self.replicates, 20)
        if self.chunk is not None:
            check_count("chunk", self.chunk, 1)


def run(
    problem: AbstractProblem, estimators: Mapping[str, AbstractEstimator], settings: Settings
) -> AuditReport:
    """Measure all of them, first the reference, then one after the other, then what they cost."""
    began = time.perf_counter()
    generator = torch.Generator(problem.device).manual_seed(settings.seed)
    target, reference = reference_of(
        problem,
        settings.reference,
        evaluations=settings.evaluations,
        replicates=settings.replicates,
        chunk=settings.chunk,
        generator=generator,
    )
    norm, size = math.sqrt(target.square), problem.magnitude(generator)
    floor = rounding(problem.dtype, norm, size)
    if norm <= floor:
        reference = dataclasses.replace(
            reference, norm=0.0, words=reference.words + " It is zero up to rounding."
        )

    def rows_of(chosen: Mapping[str, AbstractEstimator], replicates: int) -> list[AuditRow]:
        less = dataclasses.replace(settings, replicates=replicates)
        rows = [
            _row(problem, name, one, target, floor, less, generator) for name, one in chosen.items()
        ]
        verdicts = iter(holm([row.p_value for row in rows if row.skipped is None]))
        rows = [r if r.skipped else dataclasses.replace(r, biased=next(verdicts)) for r in rows]
        return _timed(problem, rows, chosen, generator)

    return AuditReport(
        rows=tuple(rows_of(estimators, settings.replicates)),
        batches=1,
        reference=reference,
        problem=problem.words,
        dimensions=problem.dimensions,
        batch=problem.rows,
        evaluations=settings.evaluations,
        replicates=settings.replicates,
        seed=settings.seed,
        device=str(problem.device),
        torch=torch.__version__,
        seconds=time.perf_counter() - began,
        search=Search(dict(estimators), rows_of),
    )


def _row(
    problem: AbstractProblem,
    name: str,
    one: AbstractEstimator,
    target: Target,
    floor: float,
    settings: Settings,
    generator: torch.Generator,
) -> AuditRow:
    promised = AuditRow(name, unbiased=one.traits.unbiased, exact_for=one.traits.exact_for)
    try:
        samples, used = problem.samples(one, settings.evaluations)
        held = peak_bytes(lambda: problem.forward(one, samples, generator)())
        moments = moments_of(
            lambda n, g: problem.gradients(one, samples, n, g),
            replicates=settings.replicates,
            chunk=chunk_size(problem, held, settings.chunk),
            generator=generator,
            groups=target.group_count(settings.replicates),
            reference=target.mean,
        )
    except GradthroughError as error:
        return dataclasses.replace(promised, skipped=str(error))
    found = compare(moments, target, floor)
    return dataclasses.replace(
        promised, evaluations=used, samples=samples, peak_bytes=held, **found
    )


def _timed(
    problem: AbstractProblem,
    rows: list[AuditRow],
    estimators: Mapping[str, AbstractEstimator],
    generator: torch.Generator,
) -> list[AuditRow]:
    """Return the rows with the seconds of one estimate."""
    taken = halves(
        {
            row.estimator: lambda one=estimators[row.estimator], n=row.samples: problem.forward(
                one, n, generator
            )
            for row in rows
            if row.skipped is None
        }
    )
    return [
        row
        if row.skipped
        else dataclasses.replace(
            row,
            seconds_forward=taken[row.estimator][0],
            seconds_backward=taken[row.estimator][1],
        )
        for row in rows
    ]
