"""How Sphinx builds the manual: ``make docs``."""

import sys
import tomllib
from pathlib import Path

sys.argv[1:] = []  # Sphinx has read them; PETSc would as well

with open(Path(__file__).parents[1] / "pyproject.toml", "rb") as file:
    release = tomllib.load(file)["project"]["version"]

project = "localckpt"
author = copyright = "localckpt developers"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
napoleon_google_docstring = False
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # docstrings have them
myst_heading_anchors = 2
html_theme = "alabaster"
html_theme_options = {"description": "Adjoint checkpoints on node-local disks", "page_width": "1140px",
                      "body_max_width": "none", "fixed_sidebar": True}
