"""Check in under a minute what a change can have broken.

    python tools/quick.py [--since COMMIT]

Lint, types and contracts run side by side. Then come the tests of the modules that differ from the
commit (by default the last one), then those of the modules that import them, as many as the minute
allows. Tests marked as slow, and what the minute was too short for, are left to `make test`.
"""

from __future__ import annotations

import argparse
import ast
import subprocess
import sys
import time
from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "simba_lab"
MINUTE = 45.0  # what runs at that moment has a quarter of a minute more
CHECKS = {
    "Lint": ["ruff", "check", "--quiet", "."],
    "Layout": ["ruff", "format", "--check", "--quiet", "."],
    "Types": ["mypy"],
    "Contracts": ["lint-imports"],
}


def changed_files(since: str) -> list[Path]:
    """Return the files that differ from a commit, those that git does not know yet among them."""
    commands = (["diff", "--name-only", since], ["ls-files", "--others", "--exclude-standard"])
    texts = [
        subprocess.check_output(["git", *command], cwd=ROOT, text=True) for command in commands
    ]
    return sorted({ROOT / line for text in texts for line in text.splitlines()})


def module_of(file: Path) -> str | None:
    """Return the name of a file of the package as a module, None of any other file."""
    relative = file.relative_to(ROOT).with_suffix("")
    if file.suffix != ".py" or relative.parts[0] != PACKAGE:
        return None
    return ".".join(relative.parts).removesuffix(".__init__")


def modules_of_test(test: Path, modules: set[str]) -> set[str]:
    """Return the modules that a test file is about: that of its name, and those that it imports."""
    relative = test.relative_to(ROOT / "tests")
    name = ".".join([PACKAGE, *relative.parent.parts, relative.stem.removeprefix("test_")])
    imported = {
        f"{node.module}.{entry}"
        for node in ast.walk(ast.parse(test.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and node.module
        for entry in ["", *(alias.name for alias in node.names)]
    }
    return {entry.removesuffix(".") for entry in {name, *imported}} & modules


def importers_of(changed: set[str], graph: grimp.ImportGraph) -> set[str]:
    """Return the modules that import one of those that changed."""
    known = changed & graph.modules
    return set().union(*(graph.find_modules_that_directly_import(module) for module in known))


def tests_reached(changed: list[Path]) -> list[Path]:
    """Return the files of tests that changed files can have broken, the nearest first."""
    graph = grimp.build_graph(PACKAGE)
    modules = {name for file in changed if (name := module_of(file))}
    importers = importers_of(modules, graph)
    first, second, third = [], [], []
    for test in sorted((ROOT / "tests").rglob("test_*.py")):
        about = modules_of_test(test, graph.modules)
        if test in changed:
            first.append(test)
        elif about & modules:
            second.append(test)
        elif about & importers:
            third.append(test)
    return first + second + third


def run_checks() -> list[str]:
    """Run the checks of the text side by side; print what they find, and return which failed."""
    running = {
        name: subprocess.Popen(
            command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        for name, command in CHECKS.items()
    }
    failed = []
    for name, process in running.items():
        output, _ = process.communicate()
        if process.returncode:
            failed.append(name)
            print(f"{name}\n{output}")
    return failed


class Deadline:
    """Skips the tests that would start after a moment, in the seconds of `time.monotonic`."""

    def __init__(self, moment: float) -> None:
        self.moment, self.left = moment, 0

    def pytest_runtest_setup(self) -> None:
        """Skip a test for which the time is over."""
        if time.monotonic() > self.moment:
            self.left += 1
            pytest.skip("the minute is over")


def main() -> int:
    """Run the checks, then the tests; the exit status is 1 if anything failed."""
    end = time.monotonic() + MINUTE
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--since", default="HEAD", help="a commit; by default the last one")
    changed = changed_files(parser.parse_args().since)
    failed = run_checks()
    tests = tests_reached(changed)
    if tests:
        print(f"Tests of {len(tests)} files, the nearest first", flush=True)
        deadline = Deadline(end)
        status = pytest.main(
            ["-q", "--no-header", "-m", "not slow", *map(str, tests)], plugins=[deadline]
        )
        if status not in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
            failed.append("Tests")
        if deadline.left:
            print(f"The minute was too short for {deadline.left} tests: make test runs them.")
    print(f"Failed: {', '.join(failed)}" if failed else "Nothing failed.")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
