"""The command line: gradthrough list | audit | bench run | bench sweep | bench report | demo."""

from __future__ import annotations

import dataclasses
import importlib.util
import sys
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

from ._errors import ConfigError, GradthroughError
from .estimators import ESTIMATORS, AbstractEstimator, Traits

if TYPE_CHECKING:
    from .bench.request import Training
    from .bench.task import AbstractTask

_EXTRA = "the command line needs the extra `bench`: pip install 'gradthrough[bench]'"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; an error of gradthrough ends in one line and exit status 2."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if importlib.util.find_spec("tyro") is None:
        sys.exit(_EXTRA)
    depth, commands = _commands(words)
    app = _app(commands)
    prog = " ".join(("gradthrough", *words[:depth]))
    try:
        app.cli(prog=prog, args=words[depth:], config=_config())
    except GradthroughError as error:
        print(f"gradthrough: {error}", file=sys.stderr)
        sys.exit(2)


def _commands(words: list[str]) -> tuple[int, dict[str, Callable[..., None]]]:
    if words[:2] == ["bench", "run"]:
        return 2, {name: _run_command(name, kind) for name, kind in _tasks().items()}
    if words[:1] == ["audit"]:
        from .cli_audit import audit_named

        own = [word for word in words[1:2] if ":" in word] or ["MODULE:FUNCTION"]  # shown by --help
        named = {word: audit_named(word) for word in own}
        return 1, {name: _audit_command(kind) for name, kind in _tasks().items()} | named
    if words[:1] == ["bench"]:
        from .cli_figure import bench_figure
        from .cli_rerun import bench_rerun
        from .cli_sweep import bench_sweep

        known = {"run": _bench_run, "sweep": bench_sweep, "report": bench_report}
        return 1, known | {"rerun": bench_rerun, "figure": bench_figure}
    return 0, {"list": list_estimators, "audit": _audit, "bench": _bench, "demo": run_demo}


def _tasks() -> dict[str, type[AbstractTask]]:
    from .bench.tasks import TASKS

    return TASKS


def _app(commands: dict[str, Callable[..., None]]) -> Any:  # noqa: ANN401 - tyro's own type
    import tyro.extras

    app = tyro.extras.SubcommandApp()
    for name, command in commands.items():
        app.command(name=name)(command)
    return app


def _config() -> tuple[Any, ...]:
    import tyro

    return (tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff)


def _audit() -> None:
    """Say which estimator to take: `gradthrough audit TASK` or `... audit MODULE:FUNCTION`."""


def _bench() -> None:
    """Train and compare: `gradthrough bench run TASK`, `... sweep EXPERIMENT`, `... report`."""


def _bench_run() -> None:
    """Train one task with one estimator: `gradthrough bench run TASK --help`."""


def list_estimators(*, markdown: bool = False) -> None:
    """List the estimators with their traits and options.

    Args:
        markdown: print the table of the README.
    """
    if markdown:
        print(markdown_table())
        return
    from rich.console import Console
    from rich.table import Table

    console = Console()
    table = Table("key", "unbiased", "exact for", "needs", "samples", "options", box=None)
    table.columns[0].min_width = max(map(len, ESTIMATORS))  # keys are typed: never cut them
    wide = console.width >= 120
    if wide:
        table.add_column("paper")
    for key, kind in ESTIMATORS.items():
        cells = [key, *trait_cells(kind), ", ".join(option_names(kind)) or "-"]
        table.add_row(*cells, *((kind.traits.reference,) if wide else ()))
    console.print(table)


def markdown_table() -> str:
    """Return the table of the README, made from the traits."""
    head = ("key", "class", "unbiased", "exact for", "needs", "samples", "options", "paper")
    rows = [head, ("---",) * len(head)]
    for key, kind in ESTIMATORS.items():
        options = ", ".join(f"`{name}`" for name in option_names(kind)) or "-"
        cells = (f"`{key}`", f"`{kind.__name__}`", *trait_cells(kind), options)
        rows.append((*cells, kind.traits.reference))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def trait_cells(kind: type[AbstractEstimator]) -> tuple[str, str, str, str]:
    """Return an estimator's promises as text: unbiased, exact for, needs, samples."""
    traits = kind.traits
    return (
        "yes" if traits.unbiased else "no",
        {"all": "every f", "none": "-"}.get(traits.exact_for, f"{traits.exact_for} f"),
        _needs(traits),
        "all points" if traits.noise == "none" else f"{traits.min_samples} or more",
    )


def _needs(traits: Traits) -> str:
    """Return what an estimator asks of f, and of the variables where it does not serve all."""
    words = "gradient of f" if traits.pathwise else "values of f"
    if traits.needs_point_gradients:
        words = "values, gradient of f"
    if traits.needs_relaxed_points:
        words += ", soft points"
    return "; ".join((words, *_kinds(traits)))


def _kinds(traits: Traits) -> list[str]:
    """Return which laws an estimator serves, where that is not all that have classes."""
    if "categorical" in traits.families:
        return []
    named = {"bernoulli": "Bernoulli", "continuous": "continuous", "count": "counts"}
    return [", ".join(named[family] for family in named if family in traits.families)]


def option_names(kind: type) -> list[str]:
    """Return the options of an estimator's class."""
    return [f.name for f in dataclasses.fields(kind)] if dataclasses.is_dataclass(kind) else []


def estimator_options() -> type:
    """Return a dataclass with every option of every estimator, all of them unset."""
    import tyro

    from .bench.typed import typed_options

    members: dict[str, list[object]] = {}  # of one name, every type that some estimator takes
    users: dict[str, list[str]] = {}
    for key, kind in ESTIMATORS.items():
        for name, found in typed_options(kind).items():
            members[name] = list(dict.fromkeys((*members.get(name, ()), *found)))
            users.setdefault(name, []).append(key)
    fields = [
        (
            name,
            Annotated[
                typing.Union[(*found, None)],
                tyro.conf.arg(help=f"option of {', '.join(users[name])}"),
            ],
            None,
        )
        for name, found in members.items()
    ]
    return dataclasses.make_dataclass("EstimatorOptions", fields)


def _run_command(name: str, kind: type[AbstractTask]) -> Callable[..., None]:
    from .bench.request import Training

    options_type = estimator_options()

    def command(task: AbstractTask, training: Training, options: Any) -> None:  # noqa: ANN401
        given = cast("dict[str, Any]", vars(options))
        train(name, task, training, {k: v for k, v in given.items() if v is not None})

    command.__doc__ = (kind.__doc__ or name).splitlines()[0]
    command.__annotations__ = {"task": kind, "training": Training, "options": options_type}
    return command


def _audit_command(kind: type[AbstractTask]) -> Callable[..., None]:
    from .cli_audit import Auditing, Where, audit_task

    def command(task: AbstractTask, auditing: Auditing, where: Where) -> None:
        audit_task(task, auditing, where)

    command.__doc__ = f"Audit estimators on the task: {(kind.__doc__ or '').splitlines()[0]}"
    command.__annotations__ = {"task": kind, "auditing": Auditing, "where": Where}
    return command


def train(name: str, task: AbstractTask, training: Training, options: dict[str, Any]) -> None:
    """Run one config, with one seed or several, and print how it ended."""
    import torch

    from .bench.request import run_requested
    from .bench.typed import as_declared

    if training.threads is not None:
        torch.set_num_threads(training.threads)
    if training.estimator in ESTIMATORS:
        options = as_declared(ESTIMATORS[training.estimator], options)
    for result in run_requested(name, task, training, options):
        last = {f"{r.split} {r.metric}": r.value for r in result.records if r.kind == "metric"}
        head = f"{result.config.label} seed {result.config.seed}: {result.status}"
        print(head, result.records[-1].reason or "")
        for metric, value in last.items():
            print(f"  {metric:18} {value}")
        print(f"  records: {result.path}")


def bench_report(
    paths: tuple[Path, ...] = (),
    /,
    *,
    out: Path = Path("runs"),
    csv: Path | None = None,
    results: Path | None = None,
    markdown: Path | None = None,
    html: Path | None = None,
) -> None:
    """Print a table of all runs below a folder, or report experiments beside what was published.

    Args:
        paths: of experiments, files or folders with *.toml; or a folder of results, as `out`.
        out: folder of results, where no experiments are named: the table of all runs.
        csv: write that table there too, one row for each setting, full precision.
        results: of the experiments, `results` beside their files by default.
        markdown: write the report of the experiments there, with pictures in figures/ beside it.
        html: write it there as one page that works offline.
    """
    from .cli_report import experiments_in, report

    files = experiments_in(paths)
    if files and csv is not None:
        raise ConfigError("--csv is of a folder of results. Leave it out, or the experiments.")
    if files:
        print("\n".join(report(files, results=results, markdown=markdown, html=html)))
        return
    if (results, markdown, html) != (None, None, None):
        raise ConfigError(
            "--results, --markdown and --html are of experiments. Name some: gradthrough bench "
            "report experiments/"
        )
    _print_runs(paths[0] if paths else out, csv)


def _print_runs(out: Path, csv: Path | None) -> None:
    """Print mean and standard deviation over the seeds of each setting."""
    from rich.console import Console
    from rich.table import Column, Table

    from .bench import summary

    table = summary.settings(summary.collect(out))
    shown = summary.columns(table)
    skipped = {"label", "task", "seeds", "not done", "seconds"}
    fixed = [c for c in table.columns if c not in skipped and "/" not in c]
    varying = [c for c in fixed if table[c].n_unique() > 1]
    # What all rows share goes into the title, so that the numbers fit the terminal.
    shared = ", ".join(f"{c}={table[c][0]}" for c in fixed if c not in varying)
    first = Column("estimator", no_wrap=True)
    view = Table(first, *varying, "seeds", title=shared, title_justify="left", box=None)
    unfinished = ["not done"] if table["not done"].sum() else []
    for title in (*(title for _, title in shown), *unfinished):
        view.add_column(title, justify="right", no_wrap=True)
    for row in table.iter_rows(named=True):
        numbers = [summary.cell(row[c], row[f"{c} sd"]) for c, _ in shown]
        plain = [str(row[c]) for c in ("label", *varying, "seeds")]
        view.add_row(*plain, *numbers, *(str(row[c]) for c in unfinished))
    Console().print(view)
    if csv is not None:
        table.write_csv(csv)


def run_demo(
    dataset: Literal["digits", "mnist", "fashion-mnist", "omniglot"] = "digits",
    *,
    out: Path = Path("demo"),
    epochs: int | None = None,
    seed: int = 0,
) -> None:
    """Train one small VAE with seven estimators; write a page and a picture.

    Args:
        dataset: digits needs no download.
        out: folder of report.html, report.png, report.csv and the records.
        epochs: passes for each estimator.
        seed: the same for all.
    """
    import torch
    from rich.console import Console

    from .bench import report
    from .bench.demo import demo, task_of

    # The model is small: a second thread would cost more than it brings.
    torch.set_num_threads(1)
    console = Console()
    rows = demo(dataset, out=out, epochs=epochs, seed=seed, say=console.print)
    console.print(report.table(rows, report.title_of(task_of(dataset)[0])))
    console.print(f"{out / 'report.html'} and {out / 'report.png'} are written.")


if __name__ == "__main__":
    main()
