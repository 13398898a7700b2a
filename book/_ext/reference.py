"""Pages that document the names of a room: ``.. names:: simba_lab.training``, then one name a line.

Each name is looked up as a reader would write it, through the lazy exports, and documented from the
module that defines it. Signatures show the shortest way to it: ``sb.fit``, ``sb.training.fit_pair``.
Words in single backticks, and types in lists of parameters, become links where a page has the name.
"""

import inspect
import re
from operator import attrgetter

from docutils import nodes
from docutils.statemachine import StringList
from sphinx import addnodes
from sphinx.util.docutils import SphinxDirective, SphinxRole
from sphinx.util.nodes import make_refnode

import simba_lab

PACKAGE = simba_lab.__name__


def called(path: str) -> str:
    """Return the shortest way to a name, such as ``sb.fit`` for ``simba_lab.training.fit``."""
    name = path.rpartition(".")[2]
    if name in simba_lab.__all__:
        return f"sb.{name}"
    return f"sb.{path.removeprefix(PACKAGE + '.')}"


def directive_for(value: object) -> tuple[str, list[str]]:
    """Return the directive of autodoc for an object, and its options."""
    if inspect.isclass(value):
        members = ["   :members:", "   :member-order: bysource"]
        error = issubclass(value, BaseException)
        return ("autoexception" if error else "autoclass"), members
    if inspect.ismodule(value):
        return "automodule", ["   :no-index:"]
    return ("autofunction" if callable(value) else "py:data"), []


class Names(SphinxDirective):
    """A table of names with their summaries, then the whole documentation of each."""

    required_arguments = 1
    has_content = True

    def run(self):
        """Return the table and the entries."""
        paths = [
            f"{self.arguments[0]}.{name.strip()}"
            for name in self.content
            if name.strip()
        ]
        values = {
            path: attrgetter(path.removeprefix(f"{PACKAGE}."))(simba_lab)
            for path in paths
        }
        lines = [".. autosummary::", "   :nosignatures:", ""]
        lines += [
            f"   ~{path}"
            for path, value in values.items()
            if callable(value)
        ]
        for path, value in values.items():
            directive, options = directive_for(value)
            lines += ["", f".. {directive}:: {path}", *options]
        source, _ = self.get_source_info()
        entries = nodes.Element()
        self.state.nested_parse(
            StringList([*lines, ""], source), self.content_offset, entries
        )
        for prefix in entries.findall(addnodes.desc_addname):
            path = prefix.parent.get("fullname", "")
            module = prefix.parent.get("module", "")
            if "." not in path:  # a member of a class keeps its short name
                full_name = called(f"{module}.{path}")
                prefix.clear()
                prefix += nodes.Text(full_name.removesuffix(path))
        return entries.children


class Name(SphinxRole):
    """A name of the lab, or of anything else: a link if a page documents it."""

    def run(self):
        """Return the name as code; links are set when all pages are known."""
        return [nodes.literal(text=self.text, classes=["name"])], []


def documented(env) -> dict[str, tuple[str, str, str]]:
    """Return the page, anchor and kind of each documented name, by its last part; classes' members by two."""
    anchors = {}
    for path, entry in env.get_domain("py").objects.items():
        if entry.aliased or not path.startswith(f"{PACKAGE}."):
            continue
        words = path.split(".")
        kept = (
            2 if entry.objtype in ("method", "property", "attribute") else 1
        )
        anchors[".".join(words[-kept:])] = (
            entry.docname,
            entry.node_id,
            entry.objtype,
        )
    return anchors


def linked(app, page: str, target: tuple[str, str, str], text: nodes.Node):
    """Return a link to a documented name."""
    document, anchor, _ = target
    return make_refnode(app.builder, page, document, anchor, text)


def short(target: str) -> str:
    """Return what a docstring's name is listed by: ``fit`` for ``simba_lab.training.fit``."""
    return (
        target.strip("~.()").removeprefix(f"{PACKAGE}.").rpartition(".")[2]
    )


def set_links(app, doctree, page):
    """Link names in backticks, and the classes of this package among the types of parameters."""
    names = documented(app.env)
    for literal in list(doctree.findall(nodes.literal)):
        text = literal.astext()
        target = names.get(text.strip("()")) or names.get(short(text))
        if "name" in literal["classes"] and target:
            literal.replace_self(
                linked(app, page, target, literal.deepcopy())
            )
    for field in list(doctree.findall(nodes.field)):
        for type_text in list(field.findall(nodes.emphasis)):
            words = [
                linked(app, page, names[word], nodes.emphasis(text=word))
                if names.get(word, ("", "", ""))[2] == "class"
                else nodes.emphasis(text=word)
                for word in re.split(r"(\w+)", type_text.astext())
                if word
            ]
            type_text.replace_self(words)


def resolve(app, env, node, content):
    """Find what a docstring calls by its short name, such as an error under Raises."""
    target = documented(env).get(short(node["reftarget"]))
    if node.get("refdomain") == "py" and target:
        return linked(app, node["refdoc"], target, content)
    return None


def keep_sentence(app, what, name, value, options, lines):
    """Keep napoleon from reading what stands before a colon, in the docstring of a property, as its type."""
    if what in ("property", "attribute"):
        lines[:0] = ["..", ""]  # an empty comment, which shows nothing


def setup(app):
    """Connect to Sphinx."""
    app.connect("autodoc-process-docstring", keep_sentence, priority=400)
    app.add_directive("names", Names)
    app.add_role("name", Name())
    app.connect("doctree-resolved", set_links)
    app.connect("missing-reference", resolve)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
