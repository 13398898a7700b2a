"""Say where the book's time goes: seconds of each chapter, and of the slowest cells.

    python tools/slowest.py [--cells N]

The times are those of the last execution of each chapter by `tools/execute.py`.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parents[1]
TIMES = ROOT / "_build" / "seconds.json"


def first_line(chapter: str, cell: int) -> str:
    """Return the first line of a cell's code that does something."""
    source = nbformat.read(ROOT / "book" / f"{chapter}.ipynb", as_version=4).cells[cell].source
    lines = [line for line in source.splitlines() if line and not line.startswith(("#", "%"))]
    return lines[0] if lines else ""


def main() -> int:
    """Print both tables; the exit status is 1 if no chapter was executed yet."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", type=int, default=20, help="how many cells")
    number = parser.parse_args().cells
    if not TIMES.is_file():
        print("No chapter was executed yet. Run make book first.", file=sys.stderr)
        return 1
    times = json.loads(TIMES.read_text(encoding="utf-8"))
    totals = {chapter: entry.pop("total") for chapter, entry in times.items()}
    print(f"{'chapter':36} seconds   of which cells")
    for chapter in sorted(totals, key=totals.get, reverse=True):
        print(f"{chapter:36} {totals[chapter]:7.1f} {sum(times[chapter].values()):16.1f}")
    print(f"{'all':36} {sum(totals.values()):7.1f}\n")
    cells = sorted(
        (
            (seconds, chapter, int(cell))
            for chapter in times
            for cell, seconds in times[chapter].items()
        ),
        reverse=True,
    )
    print("seconds   chapter, cell: its first line")
    for seconds, chapter, cell in cells[:number]:
        print(f"{seconds:7.1f}   {chapter}, {cell}: {first_line(chapter, cell)[:70]}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
