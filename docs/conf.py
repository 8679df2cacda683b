"""How the documentation is built: `make docs`, or `sphinx-build -W -b html docs docs/_build`."""

import sys
from pathlib import Path

import gradthrough

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

project = "gradthrough"
author = "The gradthrough authors"
version = release = gradthrough.__version__
html_title = "gradthrough"

extensions = [
    "gradthrough_docs",  # in _ext: tables from the code, formulas as MathML, links to files
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
]
exclude_patterns = ["_build", "demo", "figures"]

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
# MathML is part of the page: nothing is loaded from elsewhere, no LaTeX is needed to build it.
html_math_renderer = "mathml"

highlight_language = "none"  # of blocks that name no language: commands
default_role = "py:obj"  # single backticks of docstrings
add_module_names = False
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 80
napoleon_numpy_docstring = False
napoleon_custom_sections = [("Reference", "notes_style")]

html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["gradthrough.css"]
html_copy_source = False
html_show_sphinx = False
html_show_copyright = False
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True
