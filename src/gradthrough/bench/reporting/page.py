"""The report as one HTML page that asks nothing of the network."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator

from plotly.offline import get_plotlyjs

from . import texts
from .assembly import Section, slug
from .charts import Chart
from .coverage import Coverage
from .interactive import SCRIPT, interactive
from .provenance import provenance
from .tables import Entry, Table

# A browser that keeps to this fetches nothing, whatever a script asks for.
_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"
)
_STYLE = """
:root { color-scheme: light dark; --ink: #1a1a1a; --soft: #555; --paper: #fff; --line: #ddd;
  --good: #00704f; --bad: #b34700; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e6e6; --soft: #a8a8a8; --paper: #16181c;
  --line: #3a3d44; --good: #45c79b; --bad: #ff9a52; } }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 1.5rem auto;
  padding: 0 1rem; color: var(--ink); background: var(--paper); overflow-wrap: anywhere; }
h2 { margin: 3rem 0 .5rem; border-top: 1px solid var(--line); padding-top: 1rem; }
h3 { margin: 2rem 0 .25rem; font-size: 1.1rem; }
h4 { margin: 0; text-align: center; font-size: 1rem; }
a { color: inherit; } .soft { color: var(--soft); font-size: .9rem; }
.box { overflow-x: auto; position: relative; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9rem; }
th, td { padding: .4rem .6rem; text-align: right; vertical-align: top;
  border-bottom: 1px solid var(--line); white-space: nowrap; }
th:first-child { text-align: left; position: sticky; left: 0; background: var(--paper); }
td > * { display: block; } .published, .verdict { font-size: .85rem; color: var(--soft); }
.other { max-width: 12rem; white-space: normal; }
.within { color: var(--good); } .outside { color: var(--bad); font-weight: bold; }
summary { cursor: pointer; } details { margin: .5rem 0; font-size: .9rem; }
figure { margin: 1rem 0; } li { margin: .3rem 0; }
.panels { display: grid; gap: 1rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 20rem), 1fr)); }
.panels > div { min-width: 0; overflow: hidden; }
.legend { display: flex; flex-wrap: wrap; gap: .3rem; margin-bottom: .5rem; }
.legend button { font: inherit; font-size: .9rem; color: inherit; background: none; cursor: pointer;
  border: 1px solid var(--line); border-radius: .3rem; padding: .15rem .5rem; }
.legend button[aria-pressed=false] { opacity: .45; text-decoration: line-through; }
.legend i { display: inline-block; width: 1.4rem; margin-right: .4rem; vertical-align: middle; }
"""


def page(sections: list[Section]) -> str:
    """Return the page."""
    parts = [f"<h1>{texts.HEAD}</h1>", *(f"<p>{_text(line)}</p>" for line in texts.READ)]
    parts.append(f"<nav><ul>{''.join(map(_entry_of_contents, sections))}</ul></nav>")
    parts += [part for section in sections for part in _section(section)]
    drawn = any(chart.panels for section in sections for _, chart in section.charts)
    before = f"<script>{get_plotlyjs()}</script>" if drawn else ""
    after = f"<script>{SCRIPT}</script>" if drawn else ""
    body = "\n".join(parts)
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{texts.HEAD}</title>
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>{_STYLE}</style>{before}</head><body>
{body}
{after}</body></html>
"""


def _entry_of_contents(section: Section) -> str:
    views = [(_anchor(section, "table", i), x.title) for i, x in enumerate(section.tables)]
    views += [(name, chart.title) for name, chart in section.charts]
    inner = "".join(f'<li><a href="#{anchor}">{_text(title)}</a></li>' for anchor, title in views)
    done = "; ".join(f"{found.budget}: {found.line}" for found in section.coverage)
    return (
        f'<li><a href="#{section.name}">{_text(section.experiment.title)}</a> '
        f'<span class="soft">{_text(done)}</span><ul>{inner}</ul></li>'
    )


def _section(section: Section) -> Iterator[str]:
    experiment = section.experiment
    yield f'<h2 id="{section.name}">{_text(experiment.title)}</h2>'
    yield f"<p>Paper: {_text(experiment.paper)}</p>"
    for paragraph in re.split(r"\n\s*\n", experiment.about.strip()):
        yield f"<p>{_text(paragraph)}</p>" if paragraph else ""
    for i, table in enumerate(section.tables):
        yield from _table(table, _anchor(section, "table", i))
    for name, chart in section.charts:
        yield from _chart(chart, name)
    yield "<h3>Not run yet</h3>"
    yield f"<ul>{''.join(map(_coverage, section.coverage))}</ul>"


def _table(table: Table, anchor: str) -> Iterator[str]:
    yield f'<h3 id="{anchor}">{_text(table.title)}</h3><p>{_text(table.says)}</p>'
    head = "".join(
        f'<th scope="col">{_text(x)}</th>' for x in (table.corner, *table.columns.values())
    )
    remark = texts.remark_of(table)
    rows = "".join(
        f'<tr><th scope="row">{_text(title)}</th>'
        + "".join(_cell(table.entries.get((row, column)), remark) for column in table.columns)
        + "</tr>"
        for row, title in table.rows.items()
    )
    label = html.escape(table.title)
    yield (
        f'<div class="box" tabindex="0" role="region" aria-label="{label}"><table><thead><tr>{head}'
        f"</tr></thead><tbody>{rows}</tbody></table></div>"
    )
    source, ours = texts.source_of(table), f"Ours: {provenance(table.runs)}"
    words = (texts.remark_line(table), source, table.note, ours)
    yield f'<p class="soft">{_text(" ".join(x for x in words if x))}</p>'
    yield _runs(table)


def _cell(entry: Entry | None, remark: str) -> str:
    if entry is None:
        return "<td>–</td>"
    ours, published, verdict = map(_text, texts.lines_of(entry, remark))
    parts = [f"<b>{ours}</b>"] if ours else []
    parts += [f'<span class="published">{published}</span>'] if published else []
    kind = entry.verdict.kind
    parts += [f'<span class="verdict {kind}">{verdict}</span>'] if verdict else []
    return f'<td title="{html.escape(texts.title_of(entry))}">{"".join(parts)}</td>'


def _runs(table: Table) -> str:
    items = "".join(
        f"<li>{_text(table.rows[row])}, {_text(table.columns[column])}: "
        f"{_text(texts.title_of(entry))}</li>"
        for (row, column), entry in table.entries.items()
        if entry.ours.runs
    )
    return (
        f"<details><summary>Runs behind each number</summary><ul>{items}</ul></details>"
        if items
        else ""
    )


def _chart(chart: Chart, name: str) -> Iterator[str]:
    yield f'<h3 id="{name}">{_text(chart.title)}</h3>'
    plot = interactive(chart, f"chart-{name}") if chart.panels else ""
    words = f"{chart.caption} Ours: {provenance(chart.runs)}".strip()
    yield f'<figure>{plot}<figcaption class="soft">{_text(words)}</figcaption></figure>'


def _coverage(found: Coverage) -> str:
    items = [f"not run, {seeds}: {'; '.join(cells)}" for seeds, cells in found.missing]
    items += [
        f"{lost.cell}, seed {lost.run.config.seed} ({lost.run.key}): {lost.words}"
        for lost in found.lost
    ]
    inner = "".join(f"<li>{_text(item)}</li>" for item in items)
    line = _text(texts.coverage_line(found))
    if not items:
        return f"<li>{line}</li>"
    return f"<li><details><summary>{line}</summary><ul>{inner}</ul></details></li>"


def _anchor(section: Section, kind: str, i: int) -> str:
    return slug(f"{section.name}-{kind}-{i + 1}")


def _text(text: str) -> str:
    """Return text that is no markup, but for `code`."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(text))
