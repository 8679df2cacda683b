"""The page of an audit: one HTML file, interactive, that asks nothing of the network."""

from __future__ import annotations

import html
from typing import TYPE_CHECKING

from .._errors import ConfigError
from .chart import charts
from .interactive import interactive
from .rows import not_measured

if TYPE_CHECKING:
    from .report import AuditReport

# A browser that keeps to this fetches nothing, whatever a script asks for.
_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"
)
_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 64rem; margin: 1.5rem auto;
  padding: 0 1rem; color: #1a1a1a; overflow-wrap: anywhere; }
h1 { margin-bottom: 0; } h2 { margin: 2rem 0 .5rem; font-size: 1.25rem; }
.lead { font-size: 1.1rem; margin-top: .25rem; }
.advice { border-left: .3rem solid #0072b2; background: #f2f7fb; padding: .7rem 1rem; }
.box { overflow-x: auto; position: relative; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9rem; }
th, td { padding: .3rem .4rem; text-align: right; border-bottom: 1px solid #ddd; }
th { vertical-align: bottom; overflow-wrap: normal; } td { white-space: nowrap; }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0; background: #fff; }
td span { display: block; width: max-content; max-width: 9rem; white-space: normal; }
tr.chosen td { font-weight: bold; }
li { margin: .4rem 0; } code { font-size: .95em; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1rem; }
dt { color: #555; } dd { margin: 0; }
"""


def page(report: AuditReport) -> str:
    """Return the page."""
    try:
        found = report.recommend()
        advice, chosen = str(found), found.choice
    except ConfigError:
        advice, chosen = "No estimator was measured, so there is none to recommend.", None
    parts = [
        f'<h1>Gradient audit</h1><p class="lead">{_sentence(report.problem)}.</p>',
        f'<p class="advice">{html.escape(advice)}</p>',
        f"<p>Reference {html.escape(report.reference.words)}</p>",
    ]
    if report.measured:
        for i, chart in enumerate(charts(report)):
            parts.append(f"<h2>{html.escape(chart.title)}</h2><p>{html.escape(chart.caption)}</p>")
            unit = report.reference.norm or 1.0
            parts.append(interactive(chart, unit, name=f"chart-{i}", script=not i))
        parts.append(_table(report, chosen))
    skipped = [
        f"<li>{', '.join(f'<code>{html.escape(x)}</code>' for x in who)}: {html.escape(why)}</li>"
        for who, why in not_measured(report.rows)
    ]
    if skipped:
        parts.append(f"<h2>Not measured</h2><ul>{''.join(skipped)}</ul>")
    notes = "".join(f"<li>{html.escape(note)}</li>" for note in report.notes())
    parts += [f"<h2>What the numbers mean</h2><ul>{notes}</ul>", _reproduce(report)]
    body = "\n".join(parts)
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Gradient audit</title>
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>{_STYLE}</style></head><body>
{body}
</body></html>
"""


def _sentence(text: str) -> str:
    return html.escape(text[:1].upper() + text[1:])


def _table(report: AuditReport, chosen: str | None) -> str:
    from .report import HEADER  # which imports this module in turn

    head = "".join(f'<th scope="col">{html.escape(name)}</th>' for name in HEADER)
    body = "".join(
        ('<tr class="chosen">' if row.estimator == chosen else "<tr>")
        + f"<td><span>{html.escape(cells[0])}</span></td>"
        + "".join(f"<td>{html.escape(text)}</td>" for text in cells[1:])
        + "</tr>"
        for row, cells in zip(report.measured, report.cells(), strict=True)
    )
    return (
        '<h2>All figures</h2><div class="box" tabindex="0" role="region" aria-label="All figures">'
        f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _reproduce(report: AuditReport) -> str:
    facts = {
        "seed of all draws": str(report.seed),
        "estimates of each": f"{report.replicates:,}",
        "evaluations of f": f"at most {report.evaluations:,} for each row and estimate",
        "batch": f"{report.batch:,} rows; {report.dimensions:,} numbers in the gradient",
        "batches": f"{report.batches:,}",
        "device": report.device,
        "torch": report.torch,
        "took": f"{report.seconds:,.1f} s",
    }
    terms = "".join(
        f"<dt>{html.escape(name)}</dt><dd>{html.escape(value)}</dd>"
        for name, value in facts.items()
    )
    return (
        "<h2>How to reproduce</h2><p>The same call, with a generator in the same state, on the "
        f"same device and version of torch, finds the same, but for the times.</p><dl>{terms}</dl>"
    )
