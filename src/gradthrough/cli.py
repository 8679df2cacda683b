"""The command line: gradthrough list | audit | bench run | bench sweep | bench report | demo."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from ._errors import ConfigError, GradthroughError
from .cli_list import list_estimators
from .cli_list import trait_cells as trait_cells
from .estimators import ESTIMATORS

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


def _run_command(name: str, kind: type[AbstractTask]) -> Callable[..., None]:
    from .bench.request import Training
    from .cli_options import estimator_options, named_apart, plain_task

    options_type = estimator_options()

    def command(task: AbstractTask, training: Training, estimator: Any) -> None:  # noqa: ANN401
        given = cast("dict[str, Any]", vars(estimator))
        options = {k: v for k, v in given.items() if v is not None}
        train(name, plain_task(task), training, options)

    command.__doc__ = (kind.__doc__ or name).splitlines()[0]
    own = named_apart(kind, Training, options_type)
    command.__annotations__ = {"task": own, "training": Training, "estimator": options_type}
    return command


def _audit_command(kind: type[AbstractTask]) -> Callable[..., None]:
    from .cli_audit import Auditing, Where, audit_task
    from .cli_options import named_apart, plain_task

    def command(task: AbstractTask, auditing: Auditing, where: Where) -> None:
        audit_task(plain_task(task), auditing, where)

    command.__doc__ = f"Audit estimators on the task: {(kind.__doc__ or '').splitlines()[0]}"
    own = named_apart(kind, Auditing, Where)
    command.__annotations__ = {"task": own, "auditing": Auditing, "where": Where}
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
