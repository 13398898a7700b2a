"""Anybody's network as the verbs see one: its input as it was trained on, its answer as a logit."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import nn

from simba_lab.core.border import checks_arguments
from simba_lab.core.cohort import Cohort
from simba_lab.core.compute import Compute, deterministic, evaluating
from simba_lab.core.errors import SimbaError, Words
from simba_lab.core.network_adapter import Adapter, refuse_probabilities, responded, unwrapped
from simba_lab.training.group_routed import GroupRouted
from simba_lab.training.placement import Placement, placement_of
from simba_lab.training.predictions import finite
from simba_lab.training.scaling import OwnFunction, Scaling, scaled, scaling_of
from simba_lab.training.targets import Target, element_of, rows_of, target_of

# Where the classes of Lightning live, whose modules hold the trainer that they were trained by.
LIGHTNING = ("lightning.pytorch", "pytorch_lightning")


@checks_arguments
class AdaptedNetwork(Adapter):
    """A network of others with what `adapt` puts before and after it; its layers keep their names.

    Parameters
    ----------
    network : torch.nn.Module
    root : str
        The submodule whose layers are named; empty for the network itself.
    element : int or str, optional
        Of what the network returns.
    target : Target
    placement : Placement
    scaling : Scaling or OwnFunction, optional

    Examples
    --------
    >>> import simba_lab as sb
    >>> type(sb.adapt(sb.SimBANet((4, 8)))).__name__
    'AdaptedNetwork'
    """

    def __init__(
        self,
        network: nn.Module,
        root: str,
        element: int | str | None,
        target: Target,
        placement: Placement,
        scaling: Scaling | OwnFunction | None,
    ) -> None:
        super().__init__()
        self.network, self.root, self.element, self.target = network, root, element, target
        self.placement, self.scaling = placement, scaling
        self.gives_numbers = target.scale == "number"

    def prepared(self, volumes: torch.Tensor) -> torch.Tensor:
        """Return volumes (N, 1, X, Y, Z) of the scans as the network is given them."""
        if volumes.ndim != 5 or volumes.shape[1] != 1:
            allowed, remedy = "of shape (N, 1, X, Y, Z)", "Add the channel axis: x[:, None]."
            raise SimbaError("volumes", tuple(volumes.shape), allowed, remedy)
        # Sums over a whole volume need single precision.
        precise = volumes if volumes.dtype == torch.float64 else volumes.float()
        return scaled(self.scaling, self.as_seen(precise)).to(volumes.dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the logit, or number, of each volume (N, 1, X, Y, Z) of the scans: (N, 1)."""
        volumes = self.prepared(x)
        try:
            output = self.network(volumes)
        except (SimbaError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # whatever a network of others raises
            if volumes.is_meta:
                raise
            message = next(iter(str(error).strip().splitlines()), type(error).__name__)
            allowed = f"a network that takes volumes of shape {tuple(volumes.shape)}"
            remedy = "Give the shape, and orientation, that it was trained on: adapt(shape=...)."
            raise SimbaError(
                "model", Words(f"one that fails: {message}"), allowed, remedy
            ) from error
        return self.answered(output, len(volumes))[:, None]

    def answered(self, output: object, count: int) -> torch.Tensor:
        """Return the logit, or number, in what the network returned for `count` volumes: (N,)."""
        if isinstance(output, torch.Tensor) and isinstance(self.element, int):
            # Of a single tensor it is a column.
            rows = rows_of(output, count)
            if rows.ndim == 2 and rows.shape[1] > 1 and self.target.column is None:
                return Target(self.element, self.target.scale)(rows)
        return self.target(rows_of(element_of(output, self.element), count))

    def as_seen(self, volumes: torch.Tensor, *, nearest: bool = False) -> torch.Tensor:
        """Return volumes (N, C, X, Y, Z) of the scans on the lattice that the network sees."""
        return self.placement.to_network(volumes, nearest=nearest)

    def as_scanned(self, maps: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
        """Return maps (N, C, X, Y, Z) on the lattice of the network on that of the scans."""
        return self.placement.to_scans(maps, shape)


def adapt(
    model: nn.Module,
    *,
    output: int | str | None = None,
    target: int | str | Target | None = None,
    shape: tuple[int, int, int] | None = None,
    spacing_mm: float | tuple[float, float, float] | None = None,
    orientation: str | None = None,
    intensity: str | Scaling | Callable | None = None,
    cohort: Cohort | None = None,
) -> AdaptedNetwork:
    """Return anybody's network as the verbs of the lab take one.

    The scans are brought to what the network was trained on within the network, by steps that have
    derivatives: turned, resampled, padded or cropped, then scaled. So attributions come back on the
    grid of the scans. Wrappers (DataParallel, DDP, `torch.compile`, Fabric, Lightning) come off,
    and layers keep the names that they have in the network.

    Parameters
    ----------
    model : torch.nn.Module
        It is not changed; the result holds it, not a copy.
    output : int or str, optional
        What is taken of a tuple, list, mapping or object that the network returns: position, key or
        name. Of a network that returns a single tensor, its column: the same as `target`.
    target : int, str or Target, optional
        The class, of scores of several: its logit against all others. ``"probability"``: the
        network gives probabilities, which become logits. ``"number"``: it gives a number, such as
        an age; effects are then in its unit, and there are no rates. Both, for one of several
        columns: ``sb.training.Target(2, scale="probability")``. By default the network gives the
        logit of the disease, or scores of control and disease.
    shape : tuple of int, optional
        Of the network's volumes, along its axes. Volumes are padded with 0 or cropped around their
        middle, as by MONAI's ``ResizeWithPadOrCrop``.
    spacing_mm : float or tuple of float, optional
        Voxel size of the network, in mm, along its axes; volumes are resampled linearly. It needs a
        cohort, whose voxel size is known.
    orientation : str, optional
        Where the axes of the network go: ``"LPS"``, say. Scans of the lab are ``"RAS"``.
    intensity : {"zscore", "minmax", "percentile"}, Scaling or callable, optional
        How the intensities of each placed volume are scaled: with default settings, with one's own
        (``sb.training.Scaling("zscore", over="volume")``), or by a function that takes a volume, a
        tensor of shape (X, Y, Z), and returns one of the same shape. By default not at all.
    cohort : Cohort, optional
        Scans that the network will judge: it is tried on the first of them.

    Returns
    -------
    AdaptedNetwork
        A network that takes (N, 1, X, Y, Z) and returns logits, or numbers, of shape (N, 1).

    Raises
    ------
    SimbaError
        If settings are none; and at once with a cohort, else at the first volume, if the network
        fails on such volumes, if it has no such output, element or class, if probabilities lie
        outside [0, 1], if an image has no contrast to be scaled, or if a function of one's own
        gives another shape, or NaN.

    Examples
    --------
    >>> import simba_lab as sb
    >>> import torch
    >>> scenario = sb.Scenario(64, sb.Morphology("Insula_L", 2.5), spacing_mm=8)
    >>> test = sb.synthesise(scenario).test
    >>> theirs = torch.nn.Sequential(sb.SimBANet((4, 8), seed=0), torch.nn.Sigmoid())
    >>> network = sb.adapt(
    ...     theirs, target="probability", shape=(24, 24, 24), orientation="LPS", intensity="zscore"
    ... )
    >>> sb.logits(network, test).shape
    (16,)
    >>> sb.attribute(network, test.where([0, 1]), baseline="mean").image(0).shape
    (20, 24, 20)
    """
    network, root = _freed(unwrapped(model))
    if isinstance(network, GroupRouted):
        remedy = "Adapt each of model.networks, and route to these."
        raise SimbaError("model", Words("GroupRouted"), "one network for all subjects", remedy)
    lattice = None if cohort is None else cohort.lattice
    placement = placement_of(
        orientation,
        spacing_mm,
        shape,
        None if lattice is None else lattice.spacing_mm,
        None if lattice is None else lattice.shape,
    )
    scaling = scaling_of(intensity)
    adapted = AdaptedNetwork(network, root, output, target_of(target), placement, scaling)
    adapted.training = network.training
    if cohort is not None and len(cohort):
        _try(adapted, cohort)
    return adapted


def _try(adapted: AdaptedNetwork, cohort: Cohort) -> None:
    """Refuse a network that cannot judge the first of some scans."""
    network, device, dtype = Compute().placed(adapted)
    volume = torch.from_numpy(cohort.array(0))[None, None].to(device, dtype)
    with evaluating(network), deterministic(), torch.no_grad():
        answer = responded(network, volume)
        finite(answer.double().cpu().numpy())
        refuse_probabilities(network, volume, answer)


def _freed(model: nn.Module) -> tuple[nn.Module, str]:
    """Return a network without the trainer that Lightning keeps in it, and where its layers are."""
    kinds = [kind for kind in type(model).__mro__ if kind.__module__.startswith(LIGHTNING)]
    if not kinds:
        return model, ""
    children = dict(model.named_children())
    heavy = [name for name, child in children.items() if any(True for _ in child.parameters())]
    only = heavy[0] if len(heavy) == 1 else ""
    forward = next(kind for kind in type(model).__mro__ if "forward" in vars(kind))
    if forward in kinds or forward is nn.Module:  # it says nothing but how it is trained
        if not only:
            held = ", ".join(heavy) or "no network"
            remedy = "Give the network itself: adapt(module.net)."
            value = f"a module without forward, with {held}"
            raise SimbaError("model", Words(value), "one that says how it runs", remedy)
        return unwrapped(model.get_submodule(only)), ""
    freed = copy.copy(model)
    for name in ("_trainer", "_fabric", "_compiler_ctx"):
        if name in vars(freed):
            object.__setattr__(freed, name, None)
    return freed, only
