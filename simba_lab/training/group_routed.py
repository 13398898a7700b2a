"""GroupRouted: one network for each group of subjects."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from simba_lab.core.border import checks_arguments
from simba_lab.core.errors import SimbaError
from simba_lab.core.network_adapter import copied
from simba_lab.training.networks import logit


@checks_arguments
class GroupRouted(nn.Module):
    """One network per group; each subject is judged by the network of its group.

    Parameters
    ----------
    networks : sequence of nn.Module
        In the order of `groups`.
    by : str
        Column of the table that names the groups.
    groups : sequence of int or str
        The values of that column.

    Examples
    --------
    >>> import torch
    >>> import simba_lab as sb
    >>> networks = [sb.SimBANet((4, 8), seed=seed) for seed in (0, 1)]
    >>> model = sb.training.GroupRouted(networks, "bias", [0, 1])
    >>> model(torch.zeros(3, 1, 8, 8, 8), torch.tensor([0, 1, 1])).shape
    torch.Size([3, 1])
    """

    def __init__(self, networks: Sequence[nn.Module], by: str, groups: Sequence[int | str]) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)
        self.by, self.groups = by, list(groups)

    @classmethod
    def of_copies(cls, model: nn.Module, by: str, groups: Sequence[int | str]) -> GroupRouted:
        """Return a copy of one network for each group."""
        return cls([copied(model) for _ in groups], by, groups)

    def forward(self, x: torch.Tensor, group: torch.Tensor | None = None) -> torch.Tensor:
        """Return the logit of the disease, shape (N, 1).

        Parameters
        ----------
        x : tensor, shape (N, 1, X, Y, Z)
        group : tensor of int, shape (N,)
            Position of each subject's group in `groups`.
        """
        if group is None:
            remedy = "Each group has a network of its own."
            raise SimbaError("group", None, f"the group ({self.by}) of each subject", remedy)
        logits = x.new_zeros(len(x), 1)
        for number, network in enumerate(self.networks):
            members = group == number
            if members.any():
                logits[members, 0] = logit(network(x[members])).to(logits.dtype)
        return logits
