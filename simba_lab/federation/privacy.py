"""Privacy: a site's own policy for what it lets out of the weights that it trained; no plan and no server can change it."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from simba_lab.core.errors import SimbaError, UnknownNameError
from simba_lab.core.files import parse_yaml
from simba_lab.federation.clients import Weights
from simba_lab.federation.reading import check_names

POLICY = "SIMBA_LAB_PRIVACY"
Change = dict[str, np.ndarray]

# Of each filter: its options, the smallest and the largest value, and whether the smallest itself
# is allowed. Above an epsilon of 100 nothing is protected, and the sparse vector technique may
# search for ever.
FILTERS: dict[str, dict[str, tuple[float, float, bool]]] = {
    "svt": {
        "fraction": (0, 1, False),
        "epsilon": (0, 100, False),
        "noise_var": (0, math.inf, False),
        "epsilon_release": (0, math.inf, False),
        "gamma": (0, math.inf, False),
        "tau": (0, math.inf, True),
    },
    "percentile": {"percentile": (0, 100, True), "gamma": (0, math.inf, False)},
}


def read_policy(text: str) -> tuple[str, dict[str, float]]:
    """Read a policy, such as ``svt: {fraction: 0.1, epsilon: 1, epsilon_release: 10, gamma: 1e-3, tau: 1e-4}``.

    Parameters
    ----------
    text : str
        YAML: the name of one filter with its options. Those that are left out have FLARE's values.

        ``svt``: differential privacy by the sparse vector technique. A `fraction` of the changes is
        chosen by noisy comparisons with `tau`, cut to plus or minus `gamma`, and sent with Laplace
        noise of scale ``2 gamma n / epsilon_release``, for `n` changes sent; all others are sent as
        0. FLARE counts ``epsilon + epsilon_release`` an upload, and uploads add up. Without
        `epsilon_release` it is ``n noise_var``: with 0.1, and 1000 changes, 100, which promises
        nothing. FLARE draws the `n` among more comparisons than the technique pays for: its count
        is taken from it as it is, not proved here.

        ``percentile``: the changes of smallest size, up to a `percentile` of them, are sent as 0,
        the others cut to plus or minus `gamma`. It sends less; it is not differential privacy.

    Returns
    -------
    name : str
    options : dict of str to float

    Raises
    ------
    SimbaError
        If a name is unknown or a value out of range.

    References
    ----------
    Dwork & Roth (2014), section 3.6; Li et al. (2019), MLMI, section 2.2; Shokri & Shmatikov
    (2015), CCS.
    """
    values = parse_yaml(text, POLICY)
    if len(values) != 1:
        raise SimbaError(
            POLICY,
            text,
            f"one of {', '.join(FILTERS)} with its options",
            "For example: svt: {epsilon: 1}.",
        )
    name, options = next(iter(values.items()))
    if name not in FILTERS:
        raise UnknownNameError.among(POLICY, name, FILTERS)
    options = {} if options is None else options
    if not isinstance(options, Mapping):
        raise SimbaError(f"{POLICY}.{name}", options, "a mapping of options")
    where = f"{POLICY}.{name}"
    check_names(options, where, FILTERS[name])
    read = {
        option: _number(f"{where}.{option}", value, *FILTERS[name][option])
        for option, value in options.items()
    }
    if name == "svt" and read.get("tau", 1e-6) > read.get("gamma", 1e-5):
        # No change is larger than gamma after the cut: the search for such would not end.
        raise SimbaError(
            f"{POLICY}.svt.tau", read.get("tau", 1e-6), f"up to gamma, {read.get('gamma', 1e-5):g}"
        )
    return name, read


def _number(field: str, value: Any, least: float, most: float, closed: bool) -> float:
    try:
        number = math.nan if isinstance(value, bool) else float(value)  # YAML takes 1e-5 for a word
    except (TypeError, ValueError):
        number = math.nan
    if not (least <= number <= most and number < math.inf) or (number == least and not closed):
        above = f"{'at least' if closed else 'above'} {least:g}"
        raise SimbaError(field, value, above if most == math.inf else f"{above} and up to {most:g}")
    return number


def guarded(
    reply: dict[str, Any], came: Weights, change: Callable[[Change], Change]
) -> dict[str, Any]:
    """Return a site's reply with the changes of its weights as a filter lets them out, and without its loss.

    Parameters
    ----------
    reply : dict
        ``weights`` after training here, ``subjects`` and ``loss``. The number of subjects stays:
        averages need it. The loss becomes NaN, because no filter has seen it.
    came : dict of str to tensor
        The weights before it.
    change : callable
        The filter: takes the changes and returns what is let out of them, arrays of one axis by
        name.

    Returns
    -------
    dict
        Weights of the same names, shapes and types. Whole numbers (the batches that a normalisation
        has counted) are left as they are; variances are kept at 0 or above, which costs no privacy.

    Raises
    ------
    SimbaError
        If the weights are not finite: noise would hide that.
    """
    trained = reply["weights"]
    real = [name for name, value in trained.items() if value.is_floating_point()]
    for name in real:
        if not torch.isfinite(trained[name]).all():
            raise SimbaError(
                name,
                "not finite",
                "finite after training",
                "Look at the data and the learning rate.",
            )
    # One axis, for FLARE lets single numbers pass; double precision, so that the cut is where it
    # should be.
    changes = {
        name: (trained[name].double() - came[name].double()).reshape(-1).numpy() for name in real
    }
    # FLARE draws from numpy's global generator. Whoever could repeat its draws could take the noise
    # away again: so it never starts from the seed of a plan, nor from any state that was there
    # before, but from the operating system, each time.
    np.random.seed(np.frombuffer(os.urandom(256), np.uint32))
    out = change(changes)
    weights = dict(trained)
    for name in real:
        value = came[name].double() + torch.from_numpy(np.asarray(out[name])).reshape(
            came[name].shape
        )
        if name.endswith("running_var"):
            value = value.clamp(min=0)
        weights[name] = value.to(trained[name].dtype)
    return {**reply, "weights": weights, "loss": math.nan}


__all__ = ["FILTERS", "POLICY", "guarded", "read_policy"]
