"""The command line's report: what experiments found, beside what was published."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ._errors import ConfigError


def experiments_in(paths: Sequence[Path]) -> list[Path]:
    """Return the files of experiments that paths name; none if they name one folder of results.

    Args:
        paths: files, or folders with files (``*.toml``).

    Raises:
        ConfigError: a path that is neither, or several folders of results.
    """
    found: list[Path] = []
    plain: list[Path] = []
    for path in paths:
        if not path.is_dir() and (path.suffix != ".toml" or not path.is_file()):
            raise ConfigError(
                f"{path} is no experiment. Name a file (*.toml), a folder of such files, or a "
                "folder of results."
            )
        files = sorted(path.glob("*.toml")) if path.is_dir() else [path]
        plain += [] if files else [path]
        found += files
    if plain and (found or len(plain) > 1):
        names = ", ".join(map(str, plain))
        raise ConfigError(f"{names} has no experiments (*.toml). Name one folder of results alone.")
    names = [path.stem for path in found]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(f"two files are the experiment {', '.join(twice)}. Name each once.")
    return found


def report(
    files: Sequence[Path], *, results: Path | None, markdown: Path | None, html: Path | None
) -> list[str]:
    """Write the report of experiments; return what to tell.

    Args:
        files: of the experiments.
        results: folder of results; None: ``results`` beside each file.
        markdown: where to write the Markdown; None: nowhere.
        html: where to write the page; None: nowhere.

    Raises:
        ConfigError: a file that is no experiment, or a path that cannot be written.
        DomainError: files that are not records.
    """
    from .bench.experiment_file import load
    from .bench.reporting.assembly import section
    from .bench.reporting.output import write

    for path in (markdown, html):
        if path is not None and path.is_dir():
            raise ConfigError(f"{path} is a folder, but the report is a file. Name one in it.")
    sections = [section(load(file), results or file.parent / "results") for file in files]
    try:
        write(sections, to_markdown=markdown, to_html=html)
    except OSError as error:
        raise ConfigError(f"the report cannot be written: {error}.") from error
    lines = [
        f"{one.experiment.name}: " + "; ".join(f"{c.budget}: {c.line}" for c in one.coverage)
        for one in sections
    ]
    written = [str(path) for path in (markdown, html) if path is not None]
    told = f"Written: {', '.join(written)}." if written else "Name files: --markdown and --html."
    return [*lines, told]
