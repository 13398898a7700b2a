"""The shape of the code: what importing costs, how large functions are, whether exports exist."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "simba_lab").rglob("*.py"))
STUBS = sorted((ROOT / "simba_lab").rglob("*.pyi"))
HEAVY = ("torch", "captum", "matplotlib", "numba", "scipy.stats", "sklearn", "nvflare", "pandas")


@pytest.mark.parametrize(
    "command",
    ["import simba_lab", "from simba_lab import cli; cli.main(['--help'])"],
    ids=["import", "help"],
)
def test_starting_imports_nothing_heavy(command):
    """`import simba_lab` and `simba-lab --help` answer at once."""
    code = (
        f"import sys\ntry:\n    {command}\nexcept SystemExit:\n    pass\n"
        f"print(sorted(set({HEAVY!r}) & set(sys.modules)), file=sys.stderr)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stderr.strip() == "[]"


def test_a_module_that_a_room_exports_can_be_had_first():
    """Its own package must know it, whatever was imported before."""
    code = "import simba_lab as sb; print(sb.synthesis.deformation.__name__)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.stdout.strip() == "simba_lab.synthesis.rendering.deformation", run.stderr


def functions():
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield path, node


def test_functions_fit_on_a_screen():
    long = []
    for path, node in functions():
        body = node.body[1:] if ast.get_docstring(node) else node.body
        lines = body[-1].end_lineno - body[0].lineno + 1 if body else 0
        if lines > 60:
            long.append(f"{path.relative_to(ROOT)}: {node.name} has {lines} lines")
    assert not long, "\n".join(long)


def test_calls_have_at_most_eight_parameters():
    """Inner loops, which no user calls, may have more: they take numbers, not objects."""
    wide = []
    for path, node in functions():
        arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        names = [argument.arg for argument in arguments if argument.arg not in ("self", "cls")]
        if len(names) > 8 and "kernels" not in path.parts:
            wide.append(f"{path.relative_to(ROOT)}: {node.name} takes {len(names)} parameters")
    assert not wide, "\n".join(wide)


def test_the_formatter_formats_everything():
    marks = ("fmt: " + "skip", "fmt: " + "off")
    for path in [*SOURCES, *sorted((ROOT / "tests").rglob("*.py"))]:
        unformatted = any(mark in path.read_text(encoding="utf-8") for mark in marks)
        assert not unformatted, f"{path} keeps lines from the formatter"


@pytest.mark.parametrize("stub", STUBS, ids=lambda path: str(path.parent.relative_to(ROOT)))
def test_every_export_exists(stub):
    """Lazy exports are promises: each name of a stub is there, and `__all__` lists them all."""
    package = ".".join(stub.parent.relative_to(ROOT).parts)
    room = importlib.import_module(package)
    tree = ast.parse(stub.read_text(encoding="utf-8"))
    imported = {
        alias.asname or alias.name
        for node in tree.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    # ``from . import name`` exports the module itself, which hides nothing.
    modules = {
        alias.name
        for node in tree.body
        if isinstance(node, ast.ImportFrom) and node.module is None
        for alias in node.names
    }
    listed = next(
        {entry.value for entry in node.value.elts}
        for node in tree.body
        if isinstance(node, ast.Assign) and node.targets[0].id == "__all__"
    )
    assert listed == imported
    for name in sorted(listed):
        assert getattr(room, name) is not None
        hidden = name not in modules and (stub.parent / f"{name}.py").exists()
        assert not hidden, f"the module hides the export {name}"


def test_the_top_level_is_short():
    """About thirty names for the main walk, and the rooms; everything else is under its room."""
    import simba_lab

    assert len(simba_lab.__all__) <= 50


def test_test_files_have_different_names():
    """Pytest imports them by their names alone: two of one name stop the whole run."""
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert sorted(set(names)) == sorted(names)
