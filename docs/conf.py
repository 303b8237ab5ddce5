# SPDX-License-Identifier: Apache-2.0
"""Configuration of Sphinx for the manual: `sphinx-build -W --keep-going -b html docs docs/_build`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

from generated_content import list_public_names

from fastds._version import __version__

project = "fastds"
author = "the fastds developers"
copyright = "the fastds developers"
release = version = __version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "plain_docstrings",
    "generated_content",
]
source_suffix = {".md": "markdown", ".rst": "restructuredtext"}
exclude_patterns = ["_build"]
templates_path = ["_templates"]

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

autosummary_generate = True
autosummary_context = {"list_public_names": list_public_names}
suppress_warnings = ["config.cache"]  # autosummary_context holds a function
autodoc_typehints = "none"  # the signature shows the types; a second list of them repeats the section Args
autodoc_member_order = "bysource"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False

html_theme = "sphinx_book_theme"
html_title = f"fastds {release}"
html_theme_options = {
    "show_toc_level": 2,
    "navbar_persistent": [],  # the sidebar has the search field
    "use_download_button": False,
    "use_fullscreen_button": False,
}
html_static_path = ["_static"]
html_css_files = ["custom.css"]
html_copy_source = False
html_show_sourcelink = False
