"""What the bytecode of a function says about what it uses."""

from __future__ import annotations

import dis
from types import CodeType

# Names by which code reaches what its text does not name.
HIDDEN_GLOBALS = ("__import__", "eval", "exec", "globals")
HIDDEN_ATTRIBUTES = ("environ", "environb", "getenv", "import_module")


def globals_in(code: CodeType) -> set[str]:
    """Return the names of the globals that code uses, and functions within it."""
    used = {
        instruction.argval
        for instruction in dis.get_instructions(code)
        if instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME")
    }
    return used.union(*(globals_in(inner) for inner in _inner(code)))


def names_in(code: CodeType) -> set[str]:
    """Return all names of globals, attributes and imports in code, and functions within it."""
    return set(code.co_names).union(*(names_in(inner) for inner in _inner(code)))


def imports_in(code: CodeType) -> set[tuple[str, int]]:
    """Return name and level of each module that code imports when it runs."""
    instructions = list(dis.get_instructions(code))
    imported = {
        (instruction.argval, int(instructions[number - 2].argval or 0))
        for number, instruction in enumerate(instructions)
        if instruction.opname == "IMPORT_NAME"
    }
    return imported.union(*(imports_in(inner) for inner in _inner(code)))


def hidden_look_ups(code: CodeType) -> list[str]:
    """Return by which means code reaches what its text does not name."""
    names = names_in(code)
    hidden = globals_in(code).intersection(HIDDEN_GLOBALS) | names.intersection(HIDDEN_ATTRIBUTES)
    if {"sys", "modules"} <= names:
        hidden.add("sys.modules")
    return sorted(hidden)


def _inner(code: CodeType) -> list[CodeType]:
    return [constant for constant in code.co_consts if isinstance(constant, CodeType)]
