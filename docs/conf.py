"""Sphinx's settings for the site: the pages of this folder, and a reference from the docstrings.

``nox -s docs`` builds it into ``build/docs``; every warning is an error.
"""

import sys
from pathlib import Path

from midapi_async import __version__

sys.path.insert(0, str(Path(__file__).parent / "_extensions"))

project = "midapi_async"
author = "the midapi_async authors"
copyright = author  # noqa: A001  # Sphinx's name for it
version = release = __version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "fault_tests",
    "reference",
]
exclude_patterns = ["_static", "_extensions"]
nitpicky = True

# Markdown: every heading down to the third level can be linked to.
myst_heading_anchors = 3
myst_enable_extensions = ["attrs_inline", "colon_fence", "deflist"]

# The reference
default_role = "name"  # `…` in docstrings; see _extensions/reference.py
add_module_names = False
smartquotes = False  # "--repeat" is a flag, and "fast" a str
maximum_signature_line_length = 76
python_use_unqualified_type_names = True
python_display_short_literal_types = True
autodoc_member_order = "bysource"
autodoc_class_signature = "mixed"
autodoc_use_type_comments = False  # we have none, and in generated code it finds other text
autodoc_default_options = {"members": True}
# These names stay names in signatures.
autodoc_type_aliases = {
    name: name
    for name in (
        *("Request", "Requests", "Asked", "JSON", "Speed", "AspectRatio", "Version", "Motion"),
        *("VideoBatchSize", "Files", "HasTaskId", "Claim", "Headers", "Body", "ASGIApplication"),
    )
}
napoleon_numpy_docstring = False
napoleon_use_ivar = False
napoleon_use_rtype = False
napoleon_attr_annotations = False

# HTML. Nothing on a page comes from another host, and nothing points to one that we do not name.
html_theme = "furo"
pygments_dark_style = "github-dark"
html_title = f"midapi_async {version}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_js_files = [("site.js", {"defer": "defer"})]
html_use_index = False  # the search finds names
html_copy_source = False
html_show_search_summary = False  # it would be fetched, which a browser forbids in a folder
html_show_sourcelink = False
html_show_sphinx = False
html_theme_options = {"navigation_with_keys": False}
