"""How Sphinx builds the manual: ``make docs``."""

import sys
from pathlib import Path

import tomllib

sys.argv[1:] = []  # Sphinx has read them; PETSc would as well

with open(Path(__file__).parents[1] / "pyproject.toml", "rb") as file:
    release = tomllib.load(file)["project"]["version"]

project = "localckpt"
author = copyright = "localckpt developers"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
napoleon_google_docstring = False
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints = "none"  # docstrings have them
myst_heading_anchors = 2
html_theme = "alabaster"
html_theme_options = {
    "description": "Adjoint checkpoints on node-local disks",
    "page_width": "1140px",
    "body_max_width": "none",
    "fixed_sidebar": True,
}


def setup(app):
    app.connect("autodoc-process-signature", without_self)


def without_self(app, what, name, obj, options, signature, returned):
    """The signatures that Cython writes into docstrings have one."""
    return signature and signature.replace("(self, ", "(").replace("(self)", "()"), returned
