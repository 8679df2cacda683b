"""The files of a report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from .. import records
from .assembly import Section
from .markdown import markdown
from .page import page
from .picture import png


def write(sections: Sequence[Section], *, to_markdown: Path | None, to_html: Path | None) -> None:
    """Write the reports, each file as a whole or not at all.

    Args:
        sections: one for each experiment.
        to_markdown: the Markdown; its pictures go to ``figures/`` beside it.
        to_html: the page.
    """
    if to_markdown is not None:
        for one in sections:
            for name, chart in one.charts:
                if chart.panels:
                    records.replace(to_markdown.parent / "figures" / f"{name}.png", png(chart))
        records.replace(to_markdown, markdown(list(sections), to_markdown.parent).encode())
    if to_html is not None:
        records.replace(to_html, page(list(sections)).encode())
