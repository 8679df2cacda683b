"""audit and audit_model: every estimator on one and the same gradient."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import cast

import torch
from torch import Tensor

from .._errors import ConfigError, GradthroughError
from .._types import Objective
from ..estimators import ESTIMATORS, AbstractEstimator, estimator
from .batches import over_batches
from .engine import Settings, run
from .function_problem import FunctionProblem
from .model import ModelProblem, Parameters, tensors
from .problem import AbstractProblem
from .report import AuditReport

_Named = Mapping[str, AbstractEstimator]
Choice = Iterable[AbstractEstimator | str] | _Named | None


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

    What is measured is the gradient g of the batch mean of E f(z) in the parameters of the law,
    flattened, with f held fixed: in the logits, or in those of loc, scale, rate ... that require a
    gradient, in all of them if none does. A parameter that is broadcast has a number for each
    variable, and one given as probs is audited in its logits. Its bias ``||E g - r||`` against
    the reference r, its variance ``tr Cov g``, its mean squared error
    ``E ||g - r||^2 = variance + bias^2``, each with a 95 % interval, and its cosine with r. All
    estimators spend the same number of evaluations of f.

    Args:
        f: takes points (N, \*batch, \*event[, C]), returns values (N, \*batch), as in `expect`.
        dist: Law, logits (\*batch, C), or one of torch.distributions: see `as_distribution`.
        estimators: estimators, their keys, or a mapping from labels; None: all of ``ESTIMATORS``.
            One that cannot serve here gets a row that says why.
        evaluations: of f for each row and estimate, >= 1. An estimator takes as many samples as
            fit.
        replicates: independent estimates, >= 20, of each estimator.
        reference: "exact", the sum over the support, for at most 10^7 points over all rows;
            "local expectation", unbiased draws that enumerate one variable at a time;
            "measure-valued", the like for laws without classes; "score function", unbiased draws
            of RLOO; "auto", the first of these that is within reach; or the gradient itself, a
            tensor of the parameter's shape, or flat: one parameter after the other, in the order
            that the report names them. The standard error of a drawn reference is part of every
            interval. Where f is random itself (dropout), no sum is exact, and a reference is
            drawn.
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
    if not isinstance(batches, Iterable):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ConfigError(
            f"batches must be batches of data, but {batches!r} came. Pass a list of at least two."
        )
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
