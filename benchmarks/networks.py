"""Every instrument on networks of every kind: a table in Markdown, "works" or the lab's error.

Usage: python benchmarks/networks.py [--quick] [NETWORK ...]

Networks are those of the tests, MONAI's in their published size without --quick. The script fails
if any instrument gives an error that is not the lab's, or a number that is not finite.
"""

import argparse
import os
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
from torch import nn

import simba_lab as sb

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "interpretation"))
from test_networks_of_all_kinds import INSTRUMENTS, NETWORKS, adapted, published

WORKS, DEFINED = "works", "defined error"


def scans() -> sb.Cohort:
    """Return subjects for the instruments, none of them used for training."""
    scenario = sb.Scenario(
        subjects=80,
        spacing_mm=8,
        disease=sb.Morphology("Insula_L", 2.5),
        bias=sb.Morphology("Putamen_L", 2.5, prevalence={"disease": 0.8, "control": 0.2}),
    )
    return sb.synthesise(scenario, seed=0).test


def outcome(
    instrument: Callable[[nn.Module, sb.Cohort], object], model: nn.Module, cohort: sb.Cohort
) -> tuple[str, str]:
    """Return how an instrument ended on a network, and what it said."""
    try:
        return (WORKS, "") if instrument(model, cohort) else ("WRONG NUMBER", "")
    except sb.SimbaError as error:
        return DEFINED, str(error)
    except Exception as error:  # the table is to show what no instrument should raise
        return f"FOREIGN {type(error).__name__}", str(error)


def main() -> int:
    """Print the table, then what the errors say."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("networks", nargs="*", metavar="NETWORK", help=", ".join(NETWORKS))
    parser.add_argument("--quick", action="store_true", help="small networks, as in the tests")
    arguments = parser.parse_args()
    if unknown := set(arguments.networks) - set(NETWORKS):
        parser.error(f"NETWORK must be among {', '.join(NETWORKS)}, got {', '.join(unknown)}")
    warnings.simplefilter("ignore")
    cohort, cells = scans(), {}
    for name in arguments.networks or NETWORKS:
        model = (adapted if arguments.quick else published)(name)
        for instrument, call in INSTRUMENTS.items():
            cells[instrument, name] = outcome(call, model, cohort)
            print(name, instrument, cells[instrument, name][0], file=sys.stderr, flush=True)
    table = pd.Series({place: kind for place, (kind, _) in cells.items()}).unstack(sort=False)
    print(table.rename_axis("instrument").to_markdown(), "\n")
    for (instrument, name), (kind, says) in cells.items():
        if kind != WORKS:
            print(f"- {instrument}, {name}, {kind}: {says}")
    return int(not np.isin(table, [WORKS, DEFINED]).all())


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as cache:
        os.environ["SIMBA_LAB_CACHE"] = cache
        sys.exit(main())
