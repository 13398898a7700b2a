"""What of a network's answer is asked: an element, a class of several, a probability, a number."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch

from simba_lab.core.border import checks_arguments
from simba_lab.core.checks import choice, whole_number
from simba_lab.core.errors import SimbaError, UnknownNameError, Words
from simba_lab.core.network_adapter import answer_of

SCALES = ("logit", "probability", "number")
# How well softmax in half precision adds up to 1, and by how much rounding passes its ends.
SUM, ROUNDING = 1e-3, 1e-6


@checks_arguments
@dataclass(frozen=True)
class Target:
    """Which number of a network's answer is asked, and what it means.

    Parameters
    ----------
    column : int, optional
        The class, or the number of several. Not needed for one number per volume, or for scores
        of control and disease, in this order.
    scale : {"logit", "probability", "number"}
        Scores of classes before a softmax or sigmoid; probabilities, which become logits; or
        numbers such as ages, which are left as they are.

    Examples
    --------
    >>> import simba_lab as sb
    >>> import torch
    >>> target = sb.training.Target(2, scale="probability")
    >>> target(torch.tensor([[0.25, 0.25, 0.5]])).tolist()
    [0.0]
    """

    column: int | None = None
    scale: Literal["logit", "probability", "number"] = "logit"

    def __post_init__(self) -> None:
        choice("scale", self.scale, SCALES)
        if self.column is not None:
            remedy = "Classes are counted from 0."
            whole_number("target", self.column, least=0, remedy=remedy)

    def __call__(self, answer: torch.Tensor) -> torch.Tensor:
        """Return one number per volume, shape (N,), from answers (N,) or (N, columns)."""
        columns = 1 if answer.ndim == 1 else answer.shape[1]
        column = self._column(columns)
        scores = answer.reshape(len(answer), columns)
        if self.scale == "probability":
            return _logit_of_probability(scores, column)
        if self.scale == "number" or columns == 1:
            return scores[:, column]
        _refuse_shares(scores)
        others = torch.cat([scores[:, :column], scores[:, column + 1 :]], dim=1)
        # With one other class, that is the difference itself.
        rest = others[:, 0] if columns == 2 else others.logsumexp(dim=1)
        return scores[:, column] - rest

    def _column(self, columns: int) -> int:
        """Return the column that is asked, of so many."""
        if self.column is None:
            if columns == 1 or (columns == 2 and self.scale != "number"):
                return columns - 1
            value = f"{columns} columns per volume, and no target"
            remedy = f"Name the column, from 0 to {columns - 1}: adapt(model, target=...)."
            raise SimbaError(
                "output of the network", Words(value), "one number, or a target", remedy
            )
        if columns == 1 and self.scale != "number":
            remedy = "It says how much speaks for the disease."
            raise SimbaError("target", self.column, "None for one number per volume", remedy)
        if self.column >= columns:
            allowed = f"an integer from 0 to {columns - 1}, a column of the network's answer"
            raise SimbaError("target", self.column, allowed)
        return self.column


def target_of(target: int | str | Target | None) -> Target:
    """Return what was given as a class, as a scale, or with its settings."""
    if isinstance(target, Target):
        return target
    if isinstance(target, str):
        return Target(scale=choice("target", target, SCALES))  # type: ignore[arg-type]
    return Target(target)


def element_of(output: object, element: int | str | None) -> torch.Tensor:
    """Return one element of what a network returned: by position, key or name; a tensor.

    Raises
    ------
    SimbaError
        If there is no such element, it is no tensor of numbers, or it is not clear which is meant.
    """
    if element is None or isinstance(output, torch.Tensor):
        if element is not None:
            problem = f"a single tensor of shape {tuple(getattr(output, 'shape', ()))}"
            remedy = "Leave output out, or name a class: adapt(model, target=...)."
            raise SimbaError("output", element, f"None for a network that gives {problem}", remedy)
        return answer_of(output)
    value = _looked_up(output, element)
    if not isinstance(value, torch.Tensor) or not value.is_floating_point():
        kind = value.dtype if isinstance(value, torch.Tensor) else type(value).__name__
        allowed = "an element that is a tensor of floating-point numbers"
        raise SimbaError("output", Words(f"{element!r}, which is {kind}"), allowed)
    return value


def _looked_up(output: object, element: int | str) -> object:
    if isinstance(output, Mapping):
        if element not in output:
            raise UnknownNameError.among("output", element, map(str, output))
        return output[element]
    if isinstance(element, str):
        if hasattr(output, element):
            return getattr(output, element)
        names: Iterable[str] = getattr(output, "_fields", ()) or getattr(output, "__dict__", ())
        raise UnknownNameError.among("output", element, names)
    if not isinstance(output, list | tuple):
        allowed = f"a name, as the network returns {type(output).__name__}"
        raise SimbaError("output", element, allowed)
    if not -len(output) <= element < len(output):
        allowed = f"an integer from 0 to {len(output) - 1}: the network returns {len(output)}"
        raise SimbaError("output", element, allowed)
    return output[element]


def rows_of(answer: torch.Tensor, count: int) -> torch.Tensor:
    """Return answers as (N,) or (N, columns) for `count` volumes: axes of one are dropped."""
    if count == 1 and (answer.ndim == 0 or (answer.ndim == 1 and len(answer) > 1)):
        answer = answer[None]  # the network dropped the axis of a batch of one
    if answer.ndim > 2 and all(size == 1 for size in answer.shape[2:]):
        answer = answer.flatten(1)
    if answer.ndim not in (1, 2) or len(answer) != count or not answer.numel():
        allowed = f"of shape ({count},) or ({count}, columns), a row for each volume"
        raise SimbaError("output of the network", tuple(answer.shape), allowed)
    return answer


def _logit_of_probability(shares: torch.Tensor, column: int) -> torch.Tensor:
    """Return the logit of a column; 0 and 1 are the nearest numbers that have one."""
    limits = torch.finfo(shares.dtype)
    asked = shares[:, column]
    if not shares.is_meta:
        wrong = (shares < -ROUNDING) | (shares > 1 + ROUNDING)
        if wrong.any():
            value = float(shares[wrong][0])
            remedy = "Leave out target='probability' if these are logits."
            raise SimbaError("output of the network", value, "in [0, 1]", remedy)
    asked = asked.clamp(limits.tiny, 1 - limits.eps / 2).double()
    rest = 1 - asked
    if shares.shape[1] > 1:
        # What the other classes have is known better than 1 less what this one has.
        others = torch.cat([shares[:, :column], shares[:, column + 1 :]], dim=1).double().sum(1)
        add_up = (asked + others - 1).abs() < SUM
        rest = torch.where(add_up, others.clamp(min=limits.tiny), rest)
    return (asked.log() - rest.log()).to(shares.dtype)


def _refuse_shares(scores: torch.Tensor) -> None:
    """Refuse rows of probabilities in the place of scores: they add up to 1."""
    if scores.is_meta or not (scores.min() >= 0 and scores.max() <= 1):
        return
    if ((scores.sum(dim=1) - 1).abs() < SUM).all():
        remedy = "They become logits with target=sb.training.Target(column, scale='probability')."
        allowed = "scores of classes before a softmax"
        raise SimbaError("output of the network", Words("probabilities"), allowed, remedy)
