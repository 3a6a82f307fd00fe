"""How Sphinx builds the manual: ``make docs``."""

import sys
from pathlib import Path

import tomllib

sys.argv[1:] = []  # Sphinx has read them; PETSc would read them as well

with open(Path(__file__).parents[1] / "pyproject.toml", "rb") as file:
    release = tomllib.load(file)["project"]["version"]

project = "localckpt"
author = copyright = "localckpt developers"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
nitpicky = True
INSIDE = (  # modules that the manual leaves out
    r"_\w+|functions|adjoint\.(arguments|checkpoints|garbage|patches|progress|saving)|"
    r"storage\.(content_index|room|run_directories|shared_directories|store_file|stored|summary)"
)
nitpick_ignore_regex = [("py:.*", rf"(?!localckpt).*|localckpt\.({INSIDE})(\..*)?")]  # and names of other projects
napoleon_google_docstring = False
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints = "none"  # docstrings have them
myst_heading_anchors = 3
myst_enable_extensions = ["deflist"]
copybutton_prompt_text = r"\$ "
copybutton_prompt_is_regexp = True
html_theme = "pydata_sphinx_theme"
html_static_path = ["static"]
html_css_files = ["localckpt.css"]
html_show_sourcelink = False
html_theme_options = {
    "logo": {"text": f"localckpt {release}"},
    "navbar_align": "left",
    "show_toc_level": 1,
    "footer_start": ["copyright"],
    "footer_end": [],
}
html_sidebars = {"index": [], "tutorial/index": []}  # pages without neighbours


def setup(app):
    app.connect("autodoc-process-signature", without_self)


def without_self(app, what, name, obj, options, signature, returned):
    """Remove the ``self`` that Cython writes into the signatures of methods."""
    return signature and signature.replace("(self, ", "(").replace("(self)", "()"), returned
