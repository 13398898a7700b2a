"""Serve MathJax from the book itself, so that formulas are set without a network."""

import shutil
from importlib.metadata import files
from pathlib import Path

# One file that sets TeX as SVG and needs no fonts; Apache-2.0, packaged by sphinx-mathjax-offline.
PACKAGE, ENDING = "sphinx-mathjax-offline", "static/mathjax/tex-svg.js"


def copy_mathjax(app, error):
    """Copy MathJax next to the pages."""
    if error is None and app.builder.format == "html":
        source = next(entry for entry in files(PACKAGE) if entry.as_posix().endswith(ENDING))
        target = Path(app.outdir) / "_static" / "mathjax"
        target.mkdir(parents=True, exist_ok=True)
        shutil.copy(source.locate(), target / "tex-svg.js")


def setup(app):
    """Connect to Sphinx."""
    app.config.mathjax_path = "mathjax/tex-svg.js"
    app.connect("build-finished", copy_mathjax)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
