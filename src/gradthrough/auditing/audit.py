"""audit and audit_model: every estimator on one and the same gradient."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterable, Mapping
from typing import cast

import torch
from torch import Tensor

from .._errors import ConfigError, GradthroughError
from .._types import Objective
from ..estimators import ESTIMATORS, AbstractEstimator, estimator
from ..estimators.checks import check_count
from .compare import compare, rounding
from .cost import halves, peak_bytes
from .intervals import holm
from .measure import chunk_size, moments_of, reference_of
from .model import ModelProblem, Parameters, over_batches, tensors
from .moments import Target
from .problem import AbstractProblem, FunctionProblem
from .report import AuditReport
from .rows import AuditRow
from .tune import Search

_Named = Mapping[str, AbstractEstimator]
Choice = Iterable[AbstractEstimator | str] | _Named | None


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


def audit(
    f: Objective,
    dist: object,
    estimators: Choice = None,
    *,
    evaluations: int = 4,
    replicates: int = 1000,
    reference: str | Tensor = "auto",
    generator: torch.Generator | None = None,
    chunk: int | None = None,
) -> AuditReport:
    r"""Measure bias, variance, error, cosine and cost of estimators on your own function.

    What is measured is the gradient g of the batch mean of E f(z) in the logits, flattened, with
    f held fixed: its bias ``||E g - r||`` against the reference r, its variance ``tr Cov g``, its
    mean squared error ``E ||g - r||^2 = variance + bias^2``, each with a 95 % interval, and its
    cosine with r. All estimators spend the same number of evaluations of f.

    Args:
        f: takes points (N, \*batch, \*event[, C]), returns values (N, \*batch), as in `expect`.
        dist: Distribution, logits (\*batch, C), or one of torch.distributions.
        estimators: estimators, their keys, or a mapping from labels; None: all of ``ESTIMATORS``.
            One that cannot serve here gets a row that says why.
        evaluations: of f for each row and estimate, >= 1. An estimator takes as many samples as
            fit.
        replicates: independent estimates, >= 20, of each estimator.
        reference: "exact", the sum over the support, for at most 10^7 points over all rows;
            "local expectation", unbiased draws that enumerate one variable at a time; "score
            function", unbiased draws of RLOO; "auto", the first of these that is within reach; or
            the gradient itself, a tensor of the logits' shape. The standard error of a drawn
            reference is part of every interval. Where f is random itself (dropout), no sum is
            exact, and a reference is drawn.
        generator: source of the seeds.
        chunk: estimates made at once; by default as many as 64 MiB hold.

    Returns:
        AuditReport: `print` it, ask it to `recommend`, `plot` it or write it with `to_html`.

    Raises:
        ShapeError, DomainError, UnsupportedError: f or dist unsound, as in `expect`.
        ConfigError: an unknown key or reference.

    Example:
        >>> import torch, gradthrough as gt
        >>> target = torch.tensor([0.1, 0.2, 0.7])
        >>> f = lambda z: (z - target).pow(3).sum(-1)
        >>> g = torch.Generator().manual_seed(0)
        >>> report = gt.audit(f, torch.zeros(1, 3), ["st", "rloo"], generator=g)
        >>> [(row.estimator, row.biased) for row in report.rows]
        [('st', True), ('rloo', False)]

    Reference:
        Protocol of variance and bias: Paulus et al., ICLR 2021, arXiv:2010.04838.
    """
    settings = Settings(evaluations, replicates, reference, chunk, seed_of(generator))
    return run(FunctionProblem(f, dist), named(estimators), settings)


def audit_model(
    loss_fn: Callable[..., Tensor],
    params: Parameters,
    estimators: Choice = None,
    *,
    batches: Iterable[object] | None = None,
    evaluations: int = 4,
    replicates: int = 1000,
    reference: str | Tensor = "auto",
    generator: torch.Generator | None = None,
) -> AuditReport:
    r"""Measure estimators on the gradient of your own forward pass, in parameters of your choice.

    As `audit`, for a whole program. With `batches`, the noise of the draws and that of the data
    are told apart, by the law of total variance
    ``Var g = E Var[g | batch] + Var E[g | batch]``: a row's ``sampling_variance`` and
    ``minibatch_variance``. Where the second is the larger, another estimator changes little.

    Args:
        loss_fn: your forward pass, deterministic but for its choices; every call is a training
            or an evaluation step to layers that keep statistics, as the module's mode says. Its
            graph is made within it. It is called with `expect`, and uses it where a random choice
            is made: ``expect(f, dist)`` for any estimator, ``expect.sample(logits)`` for a
            pathwise sample, ``expect.rollout()`` for several choices with one loss. It returns
            losses (B,), each row's a function of its own choices alone, or one loss; where it is
            not affine in the values of ``expect``, no estimator of its gradient is unbiased. With
            `batches` it is called with `expect` and a batch.
        params: a module, tensors, or a mapping of them: those whose gradient passes through the
            choice, such as ``encoder.parameters()``.
        estimators: as in `audit`.
        batches: a few batches of the data; bias and error are measured on the first.
        evaluations: of f for each row and estimate, >= 1; a program that asks for pathwise
            samples runs so often, and the mean is taken.
        replicates: independent estimates, >= 20, of each estimator.
        reference: as in `audit`; exact where all choices go through ``expect(f, dist)`` and
            their supports are small.
        generator: source of the seeds.

    Returns:
        AuditReport, as `audit`.

    Raises:
        ConfigError: loss_fn makes no random choice, or params need no gradient.
        ShapeError, DomainError, UnsupportedError: as `expect`.

    Example:
        >>> import torch, gradthrough as gt
        >>> x, g = torch.rand(16, 6), torch.Generator().manual_seed(0)
        >>> encoder, decoder = torch.nn.Linear(6, 3), torch.nn.Linear(3, 6)
        >>> def loss_fn(expect):
        ...     f = lambda z: (decoder(z) - x).square().sum(-1)
        ...     return expect(f, gt.Categorical(encoder(x)))
        >>> report = gt.audit_model(
        ...     loss_fn, encoder.parameters(), ["st", "rloo"], replicates=50, generator=g
        ... )
        >>> report.reference.kind
        'exact'

    Reference:
        Both variances: Paulus et al., ICLR 2021, arXiv:2010.04838.
    """
    settings = Settings(evaluations, replicates, reference, None, seed_of(generator))
    chosen, watched = named(estimators), tensors(params)
    seeds = torch.Generator(watched[0].device).manual_seed(settings.seed)
    if batches is None:
        return run(ModelProblem(loss_fn, watched, seeds), chosen, settings)
    problems: list[AbstractProblem] = []
    for i, batch in enumerate(batches):
        try:
            problems.append(
                ModelProblem(lambda expect, x=batch: loss_fn(expect, x), watched, seeds)
            )
        except GradthroughError as error:
            raise type(error)(f"batch {i}: {error}") from error
    if len(problems) < 2:
        raise ConfigError(
            f"batches hold {len(problems)}, but the variance over batches needs at least 2."
        )
    report = run(problems[0], chosen, settings)
    rows = [
        row
        if row.skipped
        else dataclasses.replace(
            row,
            **over_batches(problems, chosen[row.estimator], row.samples, replicates // 4, seeds),
        )
        for row in report.rows
    ]
    return dataclasses.replace(report, rows=tuple(rows), batches=len(problems))


def seed_of(generator: torch.Generator | None) -> int:
    """Return a seed that comes from the generator."""
    device = torch.device("cpu") if generator is None else generator.device
    return int(torch.randint(2**62, (), generator=generator, device=device))


def named(estimators: Choice) -> dict[str, AbstractEstimator]:
    """Return the estimators by label."""
    pairs: list[tuple[str, AbstractEstimator]]
    if estimators is None:
        return {key: kind() for key, kind in ESTIMATORS.items()}
    if isinstance(estimators, Mapping):
        pairs = [(str(name), one) for name, one in cast(_Named, estimators).items()]
    elif isinstance(estimators, str | AbstractEstimator):  # a str is an iterable of str, too
        raise ConfigError(f"estimators must be a list or a mapping. Write [{estimators!r}].")
    else:
        pairs = [
            (one, estimator(one)) if isinstance(one, str) else (label(one), one)
            for one in estimators
        ]
    for _, one in pairs:
        if not isinstance(one, AbstractEstimator):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ConfigError(
                f"an estimator was expected, but {one!r} came. Pass one of gradthrough.ESTIMATORS, "
                "built: gradthrough.ReinMax(tau=1.3)."
            )
    out = dict(pairs)
    if not out or len(out) < len(pairs):
        names = ", ".join(name for name, _ in pairs) or "none"
        raise ConfigError(
            f"the estimators must be at least one, and all different, but came: {names}."
        )
    return out


def label(one: AbstractEstimator) -> str:
    """Return the key of an estimator with the options that are not its defaults."""
    keys = {kind: key for key, kind in ESTIMATORS.items()}
    key = keys.get(type(one), type(one).__name__)
    if not dataclasses.is_dataclass(one):
        return key
    given = [
        f"{f.name}={value:g}" if isinstance(value, float) else f"{f.name}={value!r}"
        for f in dataclasses.fields(one)
        if isinstance(value := getattr(one, f.name), bool | int | float | str)
        and value != f.default
    ]
    return f"{key}({', '.join(given)})" if given else key


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
