"""What the documentation takes from the code when it is built.

A line ``<!-- generated: NAME -->`` of a page is replaced by the Markdown that NAME makes. So a page
shows nothing there where Markdown is read as it stands, on a code host say.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import api, choosing, one_bit, pictures, swaps, tasks

if TYPE_CHECKING:
    from sphinx.application import Sphinx
    from sphinx.environment import BuildEnvironment

GENERATED: dict[str, Callable[[], str]] = {
    **{f"estimators that {name}": make for name, make in choosing.lists().items()},
    "evaluations": choosing.evaluations,
    "estimators": choosing.table,
    "tasks": tasks.table,
    "temperatures": one_bit.temperatures,
    "api of estimators": api.estimators,
    "cost of a swap": swaps.cost,
    "gallery": pictures.gallery,
    "page of results": lambda: "results" if pictures.RESULTS.is_file() else "",
}
ANCHOR = re.compile(r'^<a id="([^"]+)"></a>$', re.MULTILINE)
MARK = re.compile(r"^<!-- generated: (.+) -->$", re.MULTILINE)


def fill(text: str) -> str:
    """Return a page with what its marks stand for."""
    return MARK.sub(lambda mark: GENERATED[mark[1]](), text)


def _fill(app: "Sphinx", name: str, source: list[str]) -> None:
    # MyST does not look for anchors in HTML, as which the report of experiments has them.
    source[0] = ANCHOR.sub(r"(\1)=", fill(source[0]))


def _outdated(
    app: "Sphinx",
    env: "BuildEnvironment",
    added: set[str],
    changed: set[str],
    removed: set[str],
) -> list[str]:
    """Name the pages that are to be read again although their files have not changed."""
    texts = {name: Path(env.doc2path(name)).read_text(encoding="utf-8") for name in env.found_docs}
    return [name for name, text in texts.items() if MARK.search(text)]


def setup(app: "Sphinx") -> dict[str, Any]:
    """Register everything with Sphinx."""
    from . import links, mathml

    app.connect("env-get-outdated", _outdated)
    app.connect("source-read", _fill)
    links.setup(app)
    mathml.setup(app)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
