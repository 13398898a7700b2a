"""Privacy: a site's own policy on the weights that it sends; no plan or server can change it."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch

from simba_lab.core.checks import choice, known_fields
from simba_lab.core.errors import SimbaError
from simba_lab.core.yaml_files import parse_yaml
from simba_lab.federation.clients import Weights

POLICY = "SIMBA_LAB_PRIVACY"
Change = dict[str, np.ndarray]

# The options of each filter: smallest and largest value, and whether the smallest is allowed. An
# epsilon above 100 protects nothing, and the sparse vector technique may search for ever.
FILTERS: dict[str, dict[str, tuple[float, float, bool]]] = {
    "svt": {
        "fraction": (0, 1, False),
        "epsilon": (0, 100, False),
        "noise_var": (0, math.inf, False),
        "epsilon_release": (0, math.inf, False),
        "gamma": (0, math.inf, False),
        "tau": (0, math.inf, True),
        "budget": (0, math.inf, False),
    },
    "percentile": {"percentile": (0, 100, True), "gamma": (0, math.inf, False)},
}


def read_policy(text: str) -> tuple[str, dict[str, float]]:
    """Read a privacy policy.

    Parameters
    ----------
    text : str
        YAML: the name of one filter with its options. Options that are left out have FLARE's
        values.

        ``svt``: differential privacy by the sparse vector technique. A `fraction` of the changes is
        chosen by noisy comparisons with `tau`, cut to plus or minus `gamma`, and sent with Laplace
        noise of scale ``2 gamma n / epsilon_release``, for `n` changes sent; all others are sent as
        0. FLARE counts ``epsilon + epsilon_release`` per upload, and uploads add up. Without
        `epsilon_release` it is ``n noise_var``: 0.1 with 1000 changes gives 100, which promises
        nothing. FLARE draws the `n` from more comparisons than the technique pays for; its count is
        used as it is, not proved here. With a `budget` the site refuses an upload after which the
        sum over all its uploads, jobs and restarts included, would be larger.

        ``percentile``: the smallest changes, up to a `percentile` of them, are sent as 0, the
        others cut to plus or minus `gamma`. It sends less; it is not differential privacy.

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

    Examples
    --------
    >>> import simba_lab as sb
    >>> sb.federation.read_policy("svt: {fraction: 0.1, epsilon: 1, epsilon_release: 10}")
    ('svt', {'fraction': 0.1, 'epsilon': 1.0, 'epsilon_release': 10.0})
    """
    return parse_yaml(text, POLICY, partial(_policy, text))


def _policy(text: str, values: dict[str, Any]) -> tuple[str, dict[str, float]]:
    if len(values) != 1:
        allowed = f"one of {', '.join(FILTERS)} with its options"
        raise SimbaError(POLICY, text, allowed, "For example: svt: {epsilon: 1}.")
    name, options = next(iter(values.items()))
    limits = FILTERS[choice(POLICY, name, FILTERS)]
    field = f"{POLICY}.{name}"
    if options is not None and not isinstance(options, Mapping):
        raise SimbaError(field, options, "a mapping of options")
    numbers = {
        option: _number(f"{field}.{option}", value, *limits[option])
        for option, value in known_fields(field, options or {}, limits).items()
    }
    tau, gamma = numbers.get("tau", 1e-6), numbers.get("gamma", 1e-5)
    if name == "svt" and tau > gamma:
        # No change is larger than gamma after the cut, so the search would never end.
        raise SimbaError(f"{field}.tau", tau, f"up to gamma, {gamma:g}")
    return name, numbers


def upload_cost(name: str, options: Mapping[str, float], weights: Weights) -> float:
    """Return the epsilon that FLARE counts for one upload of these weights; 0 without noise."""
    if name != "svt":
        return 0.0
    values = sum(value.numel() for value in weights.values() if value.is_floating_point())
    sent = math.ceil(values * options.get("fraction", 0.1))
    release = options.get("epsilon_release", sent * options.get("noise_var", 0.1))
    return options.get("epsilon", 0.1) + release


def _number(field: str, value: Any, smallest: float, largest: float, closed: bool) -> float:
    try:
        number = math.nan if isinstance(value, bool) else float(value)  # YAML takes 1e-5 for a word
    except (TypeError, ValueError):
        number = math.nan
    if not (smallest <= number <= largest and number < math.inf) or (
        number == smallest and not closed
    ):
        above = f"{'at least' if closed else 'above'} {smallest:g}"
        raise SimbaError(
            field, value, above if largest == math.inf else f"{above} and up to {largest:g}"
        )
    return number


def guarded(
    reply: dict[str, Any], received: Weights, change: Callable[[Change], Change]
) -> dict[str, Any]:
    """Return a site's reply with filtered changes of its weights, and without its loss.

    Parameters
    ----------
    reply : dict
        ``weights`` after training here, ``subjects`` and ``loss``. The number of subjects stays,
        because averages need it. The loss becomes NaN, because no filter covers it.
    received : dict of str to tensor
        The weights that the site was sent.
    change : callable
        The filter: takes changes, arrays of one axis by name, and returns those to send.

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
            problem = f"After training here {name} is not finite."
            raise SimbaError.problem(problem, "Look at the data and the learning rate.")
    # One axis, because FLARE does not filter single numbers; double precision, so that the cut is
    # exact.
    changes = {
        name: (trained[name].double() - received[name].double()).reshape(-1).numpy()
        for name in real
    }
    # FLARE draws from numpy's global generator. Anybody who can repeat its draws can remove the
    # noise, so each time it starts from the operating system, never from a plan's seed.
    np.random.seed(np.frombuffer(os.urandom(256), np.uint32))  # noqa: NPY002
    filtered = change(changes)
    weights = dict(trained)
    for name in real:
        sent = torch.from_numpy(np.asarray(filtered[name])).reshape(received[name].shape)
        value = received[name].double() + sent
        if name.endswith("running_var"):
            value = value.clamp(min=0)
        weights[name] = value.to(trained[name].dtype)
    return {**reply, "weights": weights, "loss": math.nan}
