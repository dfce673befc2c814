"""Sphinx's settings for the site: the pages of this folder, and a reference from the docstrings.

``nox -s docs`` builds it into ``build/docs``; every warning is an error.
"""

from midapi_async import __version__

project = "midapi_async"
author = "the midapi_async authors"
copyright = author  # noqa: A001  # Sphinx's name for it
version = release = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_static"]

# MyST
myst_heading_anchors = 3
myst_enable_extensions = ["attrs_inline", "colon_fence", "deflist"]

# HTML. Nothing on a page comes from another host, and nothing points to one that we do not name.
html_theme = "furo"
html_title = f"midapi_async {version}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sourcelink = False
html_show_sphinx = False
html_last_updated_fmt = None
html_theme_options = {"navigation_with_keys": False}
