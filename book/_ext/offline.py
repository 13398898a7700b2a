"""Make pages whole without a network: MathJax comes from the book itself, and no script names a foreign address."""

import shutil
from importlib.metadata import files
from pathlib import Path

# One file that sets TeX as SVG and needs no fonts; Apache-2.0, packaged by sphinx-mathjax-offline.
PACKAGE, ENDING = "sphinx-mathjax-offline", "static/mathjax/tex-svg.js"


def copy_mathjax(app, error):
    """Copy MathJax next to the pages."""
    if error is None and app.builder.format == "html":
        source = next(
            entry
            for entry in files(PACKAGE)
            if entry.as_posix().endswith(ENDING)
        )
        target = Path(app.outdir) / "_static" / "mathjax"
        target.mkdir(parents=True, exist_ok=True)
        shutil.copy(source.locate(), target / "tex-svg.js")


def drop_thebe(app, _name, _template, context, _doctree):
    """Leave out the set-up of Thebe: it needs a server, and the theme adds it twice, which is an error in the page."""
    context["script_files"] = [
        script
        for script in context.get("script_files", [])
        if "THEBE_JS_URL"
        not in getattr(script, "attributes", {}).get("body", "")
        and "sphinx-thebe" not in str(getattr(script, "filename", ""))
    ]


def setup(app):
    """Connect to Sphinx."""
    app.config.mathjax_path = "mathjax/tex-svg.js"
    app.connect("build-finished", copy_mathjax)
    app.connect("html-page-context", drop_thebe, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
