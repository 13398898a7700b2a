"""The command line ``simba-lab``: arguments, and the verbs of the lab for each command."""

from __future__ import annotations

import argparse
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from simba_lab.cli import audits, cohorts, studies
from simba_lab.core.errors import SimbaError


def main(arguments: list[str] | None = None) -> int:
    """Run a command; what goes wrong is one line on standard error.

    The exit status is 2 for bad input, and 130 after Ctrl-C or a signal to end.
    """
    options = _parser().parse_args(arguments)
    options.written = sys.argv[1:] if arguments is None else arguments
    try:
        with _ended_by_signals():
            options.command(options)
    except SimbaError as error:
        print(f"simba-lab: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"simba-lab: Interrupted. {options.again}", file=sys.stderr)
        return 130
    return 0


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Let the signals that end a process interrupt it as Ctrl-C does, so that it tidies up."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    for number in before:
        signal.signal(number, signal.default_int_handler)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="simba-lab", description=sys.modules["simba_lab"].__doc__)
    parser.set_defaults(again="Run the same command again: it resumes.")
    commands = parser.add_subparsers(required=True, metavar="command")
    cohorts.add_commands(commands)
    studies.add_commands(commands)
    audits.add_commands(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
