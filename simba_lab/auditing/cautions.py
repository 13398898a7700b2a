"""What somebody has to know who reads only the verdicts of an audit."""

from __future__ import annotations

import pandas as pd

NO_CONTROL = (
    "No control network was given: used says that the answer depends on the mark by more than the "
    "bound, not that training taught it to. Networks that were trained without the mark may do so."
)
ONE_CONTROL = (
    "One control network: how much such networks differ by chance is not known, and verdicts are "
    "about the difference from that one."
)
# A mean shift of half a spread turns so many decisions at most, if answers are normal.
MOST_FLIPS = 0.2


def cautions_of(table: pd.DataFrame, controls: int) -> list[str]:
    """Return cautions about the verdicts of a table of marks, for so many control networks."""
    lines = []
    if not controls and (table["verdict"] == "used").any():
        lines.append(NO_CONTROL)
    if controls == 1:
        lines.append(ONE_CONTROL)
    if "flips" in table:
        turned = table[(table["verdict"] == "not used") & (table["flips"] > MOST_FLIPS)]
        lines += [
            f"The mean answer hardly moves with {mark}, but {100 * share:.0f} % of the decisions "
            "change: answers of some people rise and those of others fall. Not used is about the "
            "mean alone."
            for mark, share in turned["flips"].items()
        ]
    return lines
