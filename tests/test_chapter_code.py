"""The code of chapters and README calls what exists: found without running a chapter."""

import ast
import importlib
import json
import re
from inspect import Parameter, signature
from pathlib import Path

import pytest

import simba_lab as sb

ROOT = Path(__file__).parents[1]
CHAPTERS = sorted((ROOT / "book").glob("*.ipynb"))
ABSENT = object()


def code_of(path):
    """Return the code of a notebook's cells, or of the Python blocks of a Markdown file."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".md":
        return re.findall(r"^```python\n(.*?)^```", text, flags=re.M | re.S)
    cells = json.loads(text)["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


def imported(tree):
    """Return the names that a chapter imports from the package, and what they are."""
    names = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "simba_lab":
                    names[alias.asname or "simba_lab"] = importlib.import_module(alias.name)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("simba_lab"):
            module = importlib.import_module(node.module)
            for alias in node.names:
                try:
                    value = getattr(module, alias.name)
                except AttributeError:  # a module that is not exported
                    value = importlib.import_module(f"{node.module}.{alias.name}")
                names[alias.asname or alias.name] = value
    return names


def value_of(node, names):
    """Return what a chain such as ``sb.core.over_seeds`` is; ABSENT if it is not of the package."""
    if isinstance(node, ast.Name):
        return names.get(node.id, ABSENT)
    if isinstance(node, ast.Attribute):
        owner = value_of(node.value, names)
        return ABSENT if owner is ABSENT else getattr(owner, node.attr)
    return ABSENT


def takes(function, argument):
    """Say whether a function of the package has a parameter; of others it is not known."""
    if not (getattr(function, "__module__", None) or "").startswith("simba_lab"):
        return True
    parameters = signature(function).parameters
    return argument in parameters or any(
        entry.kind is Parameter.VAR_KEYWORD for entry in parameters.values()
    )


def problems(path):
    """Return each name that does not exist, and each call with an argument that is not taken."""
    tree = ast.parse("\n".join(code_of(path)))
    names = imported(tree)
    for node in ast.walk(tree):
        try:
            if isinstance(node, ast.Attribute):
                value_of(node, names)
            elif isinstance(node, ast.Call) and node.keywords:
                value = value_of(node.func, names)
                for keyword in node.keywords:
                    if keyword.arg and not takes(value, keyword.arg):
                        yield f"{ast.unparse(node.func)} takes no {keyword.arg}="
        except AttributeError as error:
            yield str(error)


@pytest.mark.parametrize(
    "path", [*CHAPTERS, ROOT / "README.md", ROOT / "book" / "index.md"], ids=str
)
def test_every_call_is_to_something_that_exists(path):
    assert list(problems(path)) == []


def test_a_renamed_function_and_a_renamed_argument_are_found(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "```python\nimport simba_lab as sb\nsb.fitt(1)\nsb.core.nothing\n"
        "sb.evaluate(1, 2, groups='bias')\nother.thing(3)\n```\n"
    )
    assert sorted(line.split()[-1].strip("'") for line in set(problems(page))) == [
        "fitt",
        "groups=",
        "nothing",
    ]


def test_the_checker_follows_rooms():
    names = {"sb": sb}
    assert value_of(ast.parse("sb.probes.probe", mode="eval").body, names) is sb.probe
