"""Sweeps and comparisons that are killed: nothing is lost, nothing is left, and nobody goes on."""

import pytest
from kills import kill


@pytest.mark.parametrize("writer", ["sweep", "comparison"])
def test_kills_cost_nothing(writer):
    """Real processes with workers, SIGKILL at random moments, then the same call again."""
    assert kill(writer, 3) == {"kills": 3, "lost": 0, "left": 0, "orphans": 0}
