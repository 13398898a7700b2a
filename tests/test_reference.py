"""Every public name stands on a page of the reference, and nothing else does."""

import re
from operator import attrgetter
from pathlib import Path
from types import ModuleType

import simba_lab as sb

PAGES = Path(__file__).parents[1] / "book" / "reference"
ROOMS = [
    path.name for path in Path(sb.__file__).parent.iterdir() if (path / "__init__.pyi").exists()
]


def exported(module, names):
    """Return (name, identity) of what a module exports, and of what its own modules export."""
    entries = set()
    for name in names:
        value = getattr(module, name)
        if isinstance(value, ModuleType) and hasattr(value, "__all__"):
            entries |= exported(value, value.__all__)
        else:
            entries.add((name, id(value)))
    return entries


def on_pages():
    entries = []
    for page in PAGES.glob("*.rst"):
        text = page.read_text(encoding="utf-8")
        for room, block in re.findall(r"^\.\. names:: (\S+)\n\n((?: +\S+\n?)+)", text, flags=re.M):
            prefix = room.removeprefix("simba_lab").lstrip(".")
            for name in block.split():
                entries.append((name, id(attrgetter(f"{prefix}.{name}")(sb))))
    return entries


def test_pages_hold_every_public_name_once():
    entries = on_pages()
    public = exported(sb, sb.__all__).union(
        *(exported(getattr(sb, room), getattr(sb, room).__all__) for room in ROOMS)
    )
    assert {name for name, _ in public - set(entries)} == set(), "in no page of book/reference"
    assert {name for name, _ in set(entries) - public} == set(), "not in any __all__"
    assert len(entries) == len(set(entries)), "on two pages"


def test_every_room_has_a_page_in_the_table_of_contents():
    contents = (PAGES.parents[1] / "_toc.yml").read_text(encoding="utf-8")
    for page in PAGES.glob("*.rst"):
        assert f"book/reference/{page.stem}\n" in contents
    assert set(ROOMS) <= {page.stem for page in PAGES.glob("*.rst")}
