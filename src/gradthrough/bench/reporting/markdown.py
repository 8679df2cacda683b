"""The report in Markdown, for the documentation."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from . import texts
from .assembly import Section
from .charts import Chart
from .coverage import Coverage
from .provenance import provenance
from .runs import Run
from .tables import Entry, Table

_FAR = 2  # folders up from the report; further away lies another project


def markdown(sections: list[Section], folder: Path) -> str:
    """Return the text.

    Args:
        sections: one for each experiment.
        folder: where it is to lie, with the pictures in ``figures/`` beside it; records are linked
            from there, unless they lie far from it.
    """
    parts = [f"# {texts.HEAD}", *texts.READ, _overview(sections)]
    for section in sections:
        parts += _section(section, _way(folder, section.folder))
    return "\n\n".join(part for part in parts if part) + "\n"


def _way(start: Path, records: Path) -> str | None:
    """Return the path from one folder to another, None if it says how this machine is laid out."""
    ends = [Path(os.path.abspath(x)) for x in (start, records)]
    try:
        shared = Path(os.path.commonpath(ends))
    except ValueError:  # two drives
        return None
    near = len(ends[0].parts) - len(shared.parts) <= _FAR and shared != Path(shared.anchor)
    return os.path.relpath(records, start).replace(os.sep, "/") if near else None


def _overview(sections: list[Section]) -> str:
    rows = ["| experiment | " + " | ".join(c.budget for c in sections[0].coverage) + " |"]
    rows.append("|---" * (1 + len(sections[0].coverage)) + "|")
    for section in sections:
        done = " | ".join(found.line for found in section.coverage)
        rows.append(f"| [{_cell(section.experiment.title)}](#{section.name}) | {done} |")
    return "\n".join(rows)


def _section(section: Section, records: str | None) -> Iterator[str]:
    experiment = section.experiment
    yield f'<a id="{section.name}"></a>\n\n## {_text(experiment.title)}'
    yield f"Paper: {_text(experiment.paper)}"
    yield _text(experiment.about.strip())
    for table in section.tables:
        yield from _table(table)
    for name, chart in section.charts:
        yield from _chart(chart, name)
    yield _runs(section, records)
    yield "### Not run yet"
    yield "\n".join(_coverage(section, records))


def _table(table: Table) -> Iterator[str]:
    yield f"### {_text(table.title)}"
    yield _text(table.says)
    lines = ["| " + " | ".join(map(_cell, (table.corner, *table.columns.values()))) + " |"]
    lines.append("|---|" + "---:|" * len(table.columns))
    remark = texts.remark_of(table)
    for row, title in table.rows.items():
        cells = [_entry(table.entries.get((row, column)), remark) for column in table.columns]
        lines.append(f"| {' | '.join((_cell(title), *cells))} |")
    yield "\n".join(lines)
    source = texts.source_of(table)
    yield _text(" ".join(x for x in (texts.remark_line(table), source, table.note) if x))
    yield f"Ours: {_text(provenance(table.runs))}"


def _entry(entry: Entry | None, remark: str) -> str:
    if entry is None:
        return "–"
    ours, published, verdict = map(_cell, texts.lines_of(entry, remark))
    found = (f"**{ours}**" if ours else "", published, f"*{verdict}*" if verdict else "")
    return "<br>".join(x for x in found if x)


def _runs(section: Section, records: str | None) -> str:
    items = [
        f"- {_text(cell)}: " + ", ".join(_named(run, section) for run in runs)
        for cell, runs in section.ledger.items()
    ]
    where = f"; records in `{records}`" if records is not None else ""
    return _details(f"Runs behind the numbers, by seed{where}", items)


def _named(run: Run, section: Section) -> str:
    lent = "" if run.folder == section.folder.name else f" (of {run.folder})"
    return f"{run.config.seed} `{run.key}`{_text(lent)}"


def _details(summary: str, items: list[str]) -> str:
    """Return a list that is folded; the empty lines let its Markdown be read as such."""
    if not items:
        return ""
    return "\n".join(
        (f"<details><summary>{_text(summary)}</summary>", "", *items, "", "</details>")
    )


def _chart(chart: Chart, name: str) -> Iterator[str]:
    yield f"### {_text(chart.title)}"
    if chart.panels:
        yield f"![{_text(chart.title)}](figures/{name}.png)"
    yield _text(chart.caption)
    yield f"Ours: {_text(provenance(chart.runs))}"


def _coverage(section: Section, records: str | None) -> Iterator[str]:
    for found in section.coverage:
        yield f"- {_text(texts.coverage_line(found))}"
        yield from (f"    - {line}" for line in _open(found, records))


def _open(found: Coverage, records: str | None) -> Iterator[str]:
    for seeds, cells in found.missing:
        yield f"not run, {seeds}: {_text('; '.join(cells))}"
    for lost in found.lost:
        run = lost.run
        link = f"`{run.key}`"
        if records is not None:
            link = f"[{link}]({records}/{run.key}.jsonl)"
        yield f"{_text(lost.cell)}, seed {run.config.seed} ({link}): {_text(lost.words)}"


def _text(text: str) -> str:
    """Return text whose angle brackets are no tags."""
    return text.replace("&", "&amp;").replace("<", "&lt;")


def _cell(text: str) -> str:
    """Return text that stays in one cell of a table."""
    return " ".join(_text(text).replace("|", "\\|").split())
