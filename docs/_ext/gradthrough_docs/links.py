"""Links from pages to files and folders of the repository that are no pages; none to be loaded.

MyST copies a file beside the page that names it, so that the built pages are complete without a
network. A folder is not copied: its path is shown, or linked where GRADTHROUGH_REPOSITORY says
under which address the repository can be browsed.
"""

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.errors import ExtensionError

if TYPE_CHECKING:
    from sphinx.application import Sphinx

ROOT = Path(__file__).parents[3]
LOADED = re.compile(
    r"<(?:script|img|iframe|source)\b[^>]*\bsrc=\"(?:https?:)?//[^>]*>"
    r"|<link\b(?=[^>]*\brel=\"(?:stylesheet|preload|icon)\")[^>]*\bhref=\"(?:https?:)?//[^>]*>"
    r"|@import[^;]*//|url\([\"']?(?:https?:)?//[^)]*\)"
)


def _folders(app: "Sphinx", doctree: nodes.document) -> None:
    address = os.environ.get("GRADTHROUGH_REPOSITORY", "").rstrip("/")
    page = Path(app.env.doc2path(app.env.docname))
    for node in list(doctree.findall(pending_xref)):
        target = (page.parent / node["reftarget"]).resolve()
        if node["reftype"] != "myst" or not target.is_dir() or not target.is_relative_to(ROOT):
            continue
        path = target.relative_to(ROOT).as_posix()
        new: nodes.Element = nodes.literal(path, path)
        if address:
            new = nodes.reference("", "", *node.children, refuri=f"{address}/{path}")
        node.replace_self(new)


def _offline(app: "Sphinx", exception: Exception | None) -> None:
    """Refuse pages that load something from elsewhere."""
    for path in Path(app.outdir).rglob("*"):
        if exception is None and path.suffix in (".html", ".css"):
            if found := LOADED.search(path.read_text(encoding="utf-8")):
                raise ExtensionError(f"{path} would load {found[0]!r}")


def setup(app: "Sphinx") -> None:
    """Register the links."""
    app.connect("doctree-read", _folders)
    app.connect("build-finished", _offline)
