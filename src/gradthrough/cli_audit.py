"""The command line's audit: of a task that the library knows, or of a problem of one's own."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from ._errors import ConfigError
from .auditing.audit import audit, audit_model
from .auditing.listening import sites
from .auditing.report import AuditReport
from .bench import checkpoint, records
from .bench.seeds import Seeds
from .bench.task import AbstractTask


@dataclass
class Auditing:
    """What to audit, and how much.

    Args:
        estimators: their keys; all of them by default.
        evaluations: of f for each row, in one estimate.
        replicates: estimates of each estimator.
        tune: search for the temperature, too.
        seed: of everything random.
        out: folder of audit.html, audit.json and audit.png.
        threads: threads on CPU; torch's own choice by default.
    """

    estimators: list[str] = field(default_factory=list[str])
    evaluations: int = 4
    replicates: int = 1000
    tune: Literal["tau"] | None = None
    seed: int = 0
    out: Path = Path("audit")
    threads: int | None = None


@dataclass
class Where:
    """Where a task is audited.

    Args:
        batch_size: rows of the batch.
        on: logits: the gradient in the logits of the batch; weights: in all parameters in front
            of the random choice.
        checkpoint: of a run with the same options, whose model is audited; a fresh one by default.
    """

    batch_size: int = 100
    on: Literal["logits", "weights"] = "logits"
    checkpoint: Path | None = None


def audit_task(task: AbstractTask, auditing: Auditing, where: Where) -> None:
    """Audit the first batch of a task."""
    device, seeds = torch.device("cpu"), Seeds(auditing.seed)
    task.prepare(device)
    model = task.model(seeds)
    if where.checkpoint is not None:
        model.load_state_dict(_weights(where.checkpoint, device))
    batch = next(task.batches("train", seeds, epoch=0, size=where.batch_size))

    def loss_fn(expect: Any) -> Tensor:  # noqa: ANN401 - a Bound
        return task.losses(model, batch, expect)

    if where.on == "weights":
        problem: dict[str, Any] = {"loss_fn": loss_fn, "params": in_front(task, model, batch)}
    else:
        found = sites(loss_fn, torch.Generator())
        if len(found) != 1:
            raise ConfigError(
                f"the task makes {len(found)} random choices, and logits are those of a single "
                "one. Audit it with --on weights."
            )
        problem = {"f": found[0][0], "dist": found[0][1]}
    _finish(problem, auditing)


def audit_named(place: str) -> Callable[[Auditing], None]:
    """Return a command that audits ``module:function``."""

    def command(auditing: Auditing) -> None:
        """Audit a problem of your own: MODULE:FUNCTION returns it as a dict.

        Either {"f": f, "dist": dist}, as for gradthrough.audit, or {"loss_fn": loss_fn, "params":
        parameters}, as for gradthrough.audit_model, with "batches" if there are several.
        """
        torch.manual_seed(auditing.seed)  # of what the function draws
        _finish(load_problem(place), auditing)

    return command


def load_problem(place: str) -> dict[str, Any]:
    """Import ``module:function``, from the working directory too, and call the function."""
    module, _, name = place.partition(":")
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))  # a script's path lacks the folder it is called in
    try:
        make = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(
            f"{place!r} cannot be imported: {error}. Write MODULE:FUNCTION, for a function "
            "without arguments in a module that lies in this folder or is installed."
        ) from error
    problem = make()
    known = ({"f", "dist"}, {"loss_fn", "params"}, {"loss_fn", "params", "batches"})
    if not isinstance(problem, Mapping) or set(cast("Mapping[str, Any]", problem)) not in known:
        came = (
            sorted(map(str, cast("Mapping[Any, Any]", problem)))
            if isinstance(problem, Mapping)
            else type(problem).__name__
        )
        raise ConfigError(
            f"{place} must return a dict with f and dist, or with loss_fn and params (and "
            f"batches), but returned {came}."
        )
    return dict(cast("Mapping[str, Any]", problem))


def in_front(task: AbstractTask, model: nn.Module, batch: Tensor) -> list[Tensor]:
    """Return the parameters that the law of the latents depends on."""
    params = [p for p in model.parameters() if p.requires_grad]
    law = task.latent(model, batch)
    numbers = torch.stack([x.sum() for x in law.parameters if x.requires_grad]).sum()
    found = torch.autograd.grad(numbers, params, allow_unused=True)
    given = cast("tuple[Tensor | None, ...]", found)
    return [p for p, g in zip(params, given, strict=True) if g is not None]


def _weights(path: Path, device: torch.device) -> dict[str, Any]:
    state = checkpoint.load(path, device)
    if state is None:
        raise ConfigError(f"there is no checkpoint at {path}.")
    return state["model"]


def _finish(problem: dict[str, Any], auditing: Auditing) -> None:
    """Measure, print, and write the files."""
    if auditing.threads is not None:
        torch.set_num_threads(auditing.threads)
    measure = audit if "f" in problem else audit_model
    report: AuditReport = measure(
        **problem,
        estimators=auditing.estimators or None,
        evaluations=auditing.evaluations,
        replicates=auditing.replicates,
        generator=torch.Generator().manual_seed(auditing.seed),
    )
    print(report)
    print()
    print(report.recommend(tune=auditing.tune))
    write(report, auditing.out)
    print(f"\n{auditing.out / 'audit.html'}, audit.json and audit.png are written.")


def write(report: AuditReport, out: Path) -> None:
    """Write the page, the numbers and the picture."""
    import io

    if out.exists() and not out.is_dir():
        raise ConfigError(f"--out names a folder, but {out} is a file. Name another.")
    out.mkdir(parents=True, exist_ok=True)
    picture = io.BytesIO()
    report.plot().savefig(picture, format="png", dpi=130)
    records.replace(out / "audit.png", picture.getvalue())
    records.replace(out / "audit.json", report.to_json().encode())
    report.to_html(out / "audit.html")
