"""Studio: what all subjects of a cohort share, and how one of them is rendered."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from threading import Lock

import numpy as np

from simba_lab.core.errors import FoldingError
from simba_lab.core.lattice import Lattice
from simba_lab.core.rng import stream
from simba_lab.synthesis.anatomy.modes import subject_lattice
from simba_lab.synthesis.anatomy.template import Template, load_template
from simba_lab.synthesis.design import MATCHED_MODES, design
from simba_lab.synthesis.effects import Intensity, Morphology
from simba_lab.synthesis.kernels import fields as _kernels
from simba_lab.synthesis.rendering.deformation import evened, flow, gentle_flow, reachable, render
from simba_lab.synthesis.rendering.flows import LocalFlow, tabulate
from simba_lab.synthesis.rendering.scanner import Scanner, expose, field_basis, noise_key
from simba_lab.synthesis.scenario import Scenario

# Memory for rendered volumes, per scenario and seed.
SHELF_BYTES = 256 * 2**20
# No voxel is sampled further outside the template than this.
ROOM_MM = 100.0


class _Shelf:
    """Volumes rendered lately, up to a number of bytes: networks are judged on the same subjects again and again."""

    def __init__(self, size: int) -> None:
        self.left, self.volumes, self.lock = size, OrderedDict(), Lock()

    def get(self, key: tuple, render: Callable[[], np.ndarray]) -> np.ndarray:
        with self.lock:
            if key in self.volumes:
                self.volumes.move_to_end(key)
                return self.volumes[key]
        volume = render()
        with self.lock:
            if key not in self.volumes:
                self.volumes[key] = volume
                self.left -= volume.nbytes
            while self.left < 0 and self.volumes:
                self.left += self.volumes.popitem(last=False)[1].nbytes
        return volume


@dataclass(frozen=True, eq=False)
class Studio:
    """Template, lattices, tabulated effects and scanner of a scenario, and the volumes rendered lately.

    A subject is named by its number, the values of its matched modes (``anatomy_1`` and so on in
    the table) and the magnitude of each effect.
    """

    scenario: Scenario
    seed: int
    template: Template
    output: Lattice
    subject: Lattice
    flows: Mapping[str, LocalFlow]
    scanner: Scanner
    seen: np.ndarray
    shelf: _Shelf

    def coefficients(self, subject: int, leading: np.ndarray) -> np.ndarray:
        """Return the coefficients of a subject's anatomy: drawn from its own stream, but for the matched ones."""
        model = self.scenario.variability
        coefficients = stream(self.seed, subject, "anatomy").standard_normal(
            model.coefficient_count(self.subject)
        )
        coefficients[model.leading(self.subject, len(leading))] = leading
        return coefficients

    def displacement(self, subject: int, leading: np.ndarray) -> np.ndarray:
        """Return the displacement at which the template is sampled to make a healthy subject, in mm, interleaved.

        Raises
        ------
        FoldingError
            If the subject's anatomy folds; it names the subject and a variability that would work.
        """
        model, spacing = self.scenario.variability, self.subject.spacing_mm
        velocity = -model.velocity(self.coefficients(subject, leading), self.subject)

        def folds(displacement: np.ndarray) -> bool:
            return _kernels.least_jacobian(displacement, np.float32(1 / spacing)) <= 0

        displacement = gentle_flow(velocity, spacing)
        if folds(displacement):
            share = 0.9
            while folds(flow(np.float32(share) * velocity, spacing)):
                share *= 0.9
            raise FoldingError(
                "scenario.variability",
                model,
                f"at most {share:.2f} times as variable",
                f"The anatomy of subject {subject} would fold. Use scenario.variability.scaled({share:.2f}).",
            )
        return displacement

    def sampled(
        self,
        image: np.ndarray,
        lattice: Lattice,
        subject: int,
        leading: np.ndarray,
        magnitudes: Mapping[str, float],
        *,
        seen: np.ndarray | None = None,
    ) -> np.ndarray:
        """Sample an image of the template at the positions where the subject's anatomy comes from."""
        coarse = evened(self.displacement(subject, leading))
        shown = [
            (self.flows[name], value)
            for name, value in magnitudes.items()
            if value and name in self.flows
        ]
        # T o phi_disease^-1 o phi_bias^-1 o phi_subject^-1: sampling undoes the effect that was
        # applied last first.
        local = [(flow.at(value), flow.lattice) for flow, value in reversed(shown)]
        where = None if seen is None else (seen, self.subject)
        return render(image, lattice, coarse, self.subject, local, self.output, seen=where)

    def positions(
        self, subject: int, leading: np.ndarray, magnitudes: Mapping[str, float]
    ) -> np.ndarray:
        """Return where in the template each voxel of a subject is sampled, in mm: float32, shape (3, X, Y, Z)."""
        # Coordinates are linear, so that two nodes an axis hold them exactly: they are sampled as
        # any image is.
        low, high = self.template.box_mm
        reach = float((high - low).max()) + 2 * ROOM_MM
        box = Lattice((2, 2, 2), reach, tuple(float(value) - ROOM_MM for value in low))
        images = box.points_mm().astype(np.float32)
        return np.stack(
            [self.sampled(image, box, subject, leading, magnitudes) for image in images]
        )

    def tissue(
        self, subject: int, leading: np.ndarray, magnitudes: Mapping[str, float]
    ) -> np.ndarray:
        """Return a subject before the scanner: white matter about 1, background 0."""
        image = self.template.antialiased(self.scenario.spacing_mm)
        return self.sampled(*image, subject, leading, magnitudes, seen=self.seen)

    def settings(self, subject: int, magnitudes: Mapping[str, float]) -> Scanner:
        """Return how the scanner is set for a subject: with its own receive field, and the intensity effects it shows."""
        scanner = self.scanner
        if self.scenario.bias_field:
            weights = (
                stream(self.seed, subject, "bias field").standard_normal(9)
                * self.scenario.bias_field
                / 3
            )
            scanner = replace(scanner, field=tuple((weights @ field_basis(self.template)).tolist()))
        for name, value in magnitudes.items():
            effect = self.scenario.effects[name]
            if value and isinstance(effect, Intensity):
                scanner = scanner.carrying(effect, value, self.template)
        return scanner

    def exposed(
        self,
        subject: int,
        leading: np.ndarray,
        magnitudes: Mapping[str, float],
        *,
        noisy: bool = True,
        keep: bool = True,
    ) -> np.ndarray:
        """Return the image of a subject; without noise if asked. Not to be written to if it is kept on the shelf."""

        def photograph() -> np.ndarray:
            scanner = self.settings(subject, magnitudes)
            scanner = scanner if noisy else replace(scanner, noise=0.0)
            tissue = self.tissue(subject, leading, magnitudes)
            return expose(tissue, self.output, scanner, noise_key(self.seed, subject))

        if not keep:
            return photograph()
        return self.shelf.get((subject, noisy, *magnitudes.values()), photograph)


@lru_cache(maxsize=4)
def studio(scenario: Scenario, seed: int) -> Studio:
    """Return the studio of a scenario, with every deformation that its cohort needs checked and tabulated."""
    template, table = load_template(scenario.template), design(scenario, seed)
    flows = {
        name: tabulate(
            effect,
            template,
            table[f"{name}_magnitude"].to_numpy(),
            field_name=f"scenario.{name}",
            subjects=table.index.to_numpy(),
            variability=scenario.variability,
        )
        for name, effect in scenario.effects.items()
        if isinstance(effect, Morphology)
    }
    coarse = subject_lattice(template)
    image, lattice = template.antialiased(scenario.spacing_mm)
    seen = reachable(image, lattice, [flow.lattice for flow in flows.values()], coarse)
    scanner = Scanner(noise=scenario.noise, pivot=float(template.t1[template.brain].mean()))
    output = template.output_lattice(scenario.spacing_mm)
    return Studio(
        scenario, seed, template, output, coarse, flows, scanner, seen, _Shelf(SHELF_BYTES)
    )


MODES = [f"anatomy_{mode}" for mode in range(1, MATCHED_MODES + 1)]
