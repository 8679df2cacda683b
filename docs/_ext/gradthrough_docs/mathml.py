"""Formulas as MathML, which browsers draw themselves: no script, no network, no LaTeX."""

import re
import xml.etree.ElementTree as ET
from typing import TYPE_CHECKING

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.errors import ExtensionError

if TYPE_CHECKING:
    from sphinx.application import Sphinx
    from sphinx.writers.html5 import HTML5Translator


def mathml(latex: str, display: str = "inline") -> str:
    """Return a formula as MathML.

    Raises:
        ExtensionError: the converter does not know something in it.
    """
    out = convert(latex, display=display)
    out = out.replace("<mi>&#x0007E;</mi>", "<mo>&#x0223C;</mo>")  # of \sim, it makes a tilde
    out = re.sub(r"<mo>([a-z]{2,})</mo>", r"<mi>\1</mi>", out)  # a name, without room around it
    try:
        text = "".join(ET.fromstring(out).itertext())
    except ET.ParseError as error:  # an alignment, say
        raise ExtensionError(f"no MathML for {latex!r}: {error}") from None
    if "\\" in text:  # it spells out what it does not know
        raise ExtensionError(f"no MathML for {latex!r}: it would read {text!r}")
    return out


def _inline(page: "HTML5Translator", node: nodes.math) -> None:
    page.body.append(mathml(node.astext()))
    raise nodes.SkipNode


def _block(page: "HTML5Translator", node: nodes.math_block) -> None:
    page.body.append(f'<div class="formula">{mathml(node.astext(), "block")}</div>\n')
    raise nodes.SkipNode


def setup(app: "Sphinx") -> None:
    """Register the renderer."""
    app.add_html_math_renderer("mathml", (_inline, None), (_block, None))
