"""Strip notebooks of what running them leaves behind.

The output of cells tagged keep_output stays.

Also finds lines of prose that begin with a per cent sign: they are comments to MyST, and would not
be shown.

Usage: python tools/notebooks.py [--check] book/*.ipynb
"""

import sys
from pathlib import Path

import nbformat
from nbstripout import strip_output


def stripped(text: str) -> str:
    """Return the notebook as it is committed."""
    notebook = nbformat.reads(text, as_version=4)
    times = ["cell.metadata.execution"]
    notebook = strip_output(
        notebook, keep_output=False, keep_count=False, keep_id=False, extra_keys=times
    )
    for cell in notebook.cells:
        if cell.cell_type == "code" and cell.outputs:
            cell.execution_count = 1  # nbval takes outputs without a count for an accident
    return nbformat.writes(notebook) + "\n"


def hidden_lines(text: str) -> list[str]:
    """Return the lines of prose that would silently be left out of the page."""
    prose = [
        cell.source
        for cell in nbformat.reads(text, as_version=4).cells
        if cell.cell_type == "markdown"
    ]
    return [line for source in prose for line in source.splitlines() if line.startswith("%")]


def main(arguments: list[str]) -> int:
    """Strip the notebooks, or only say which ones are not."""
    dirty, hidden = [], []
    for path in map(Path, [name for name in arguments if name != "--check"]):
        text = path.read_text(encoding="utf-8")
        hidden += [f"{path}: {line}" for line in hidden_lines(text)]
        if stripped(text) != text:
            dirty.append(path)
            if "--check" not in arguments:
                path.write_text(stripped(text), encoding="utf-8")
    if dirty and "--check" in arguments:
        names = " ".join(map(str, dirty))
        print(f"not stripped: {names}. Run: python tools/notebooks.py {names}", file=sys.stderr)
        return 1
    if hidden:
        print("a comment to MyST, break the line elsewhere:", *hidden, sep="\n  ", file=sys.stderr)
    return int(bool(hidden))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
