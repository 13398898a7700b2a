"""A role that writes how long a chapter took to execute: {runtime}`chapter`."""

from docutils import nodes
from myst_nb.sphinx_ import NbMetadataCollector
from sphinx.util.docutils import SphinxRole


class Runtime(SphinxRole):
    """Place a mark that is filled in once the chapter has run."""

    def run(self):
        """Return the mark."""
        mark = nodes.inline(text="not yet measured", classes=["runtime"])
        mark["chapter"] = f"book/{self.text}"
        return [mark], []


def fill_in(app, doctree, _name):
    """Replace the marks by measured times."""
    for mark in doctree.findall(nodes.inline):
        if "chapter" in mark:
            measured = NbMetadataCollector.get_exec_data(
                app.env, mark["chapter"]
            )
            if measured and measured.get("runtime"):
                seconds = measured["runtime"]
                text = (
                    f"{seconds:.0f} s"
                    if seconds < 90
                    else f"{seconds / 60:.1f} minutes"
                )
                mark.children = [nodes.Text(text)]


def setup(app):
    """Connect to Sphinx."""
    app.add_role("runtime", Runtime())
    app.connect("doctree-resolved", fill_in)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
