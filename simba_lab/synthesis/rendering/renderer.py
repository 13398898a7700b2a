"""How one subject is rendered: template, moved by anatomy and effects, then seen by the scanner.

`Renderer.volume` is the whole way. What all subjects of a cohort share (template, lattices,
tabulated effects) is prepared once per scenario and seed, by `renderer_of`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache, partial

import numpy as np

from simba_lab.core.errors import FoldingError
from simba_lab.core.lattice import Lattice
from simba_lab.core.rng import stream
from simba_lab.synthesis.anatomy.modes import subject_lattice
from simba_lab.synthesis.anatomy.template import Template, load_template
from simba_lab.synthesis.design import design_table
from simba_lab.synthesis.effects import Intensity, Morphology
from simba_lab.synthesis.kernels import differences as _kernels
from simba_lab.synthesis.rendering.deformation import (
    chord_corrected,
    flow,
    near_image,
    series_flow,
    warp_once,
)
from simba_lab.synthesis.rendering.flows import LocalFlow, local_flow
from simba_lab.synthesis.rendering.scanner import Scanner, field_basis, noise_key
from simba_lab.synthesis.rendering.volume_cache import VolumeCache
from simba_lab.synthesis.scenario import Scenario

# Memory for rendered volumes, per scenario and seed.
CACHE_BYTES = 256 * 2**20
# No voxel is sampled further outside the template than this.
MARGIN_MM = 100.0


@dataclass(frozen=True, eq=False)
class Subject:
    """A subject, as far as rendering is concerned.

    Parameters
    ----------
    number : int
        Value of the table's index.
    modes : ndarray, shape (m,)
        Coefficients of the matched modes of the anatomy, ``anatomy_1`` and so on in the table.
    magnitudes : mapping of str to float
        Magnitude of each effect of the scenario, in its order; 0 for an effect that does not show.
    """

    number: int
    modes: np.ndarray
    magnitudes: Mapping[str, float]


@dataclass(frozen=True, eq=False)
class Renderer:
    """Template, lattices, tabulated effects and scanner that all subjects of a cohort share.

    Parameters
    ----------
    scenario : Scenario
    seed : int
    template : Template
    lattice : Lattice
        Of the volumes.
    subject_lattice : Lattice
        Of the velocity fields of the anatomy.
    flows : mapping of str to LocalFlow
        The morphology effects, tabulated over the magnitudes of the cohort.
    scanner : Scanner
        Before the settings of any subject.
    near_brain : ndarray of bool, on `subject_lattice`
        Positions from which some brain can be reached.
    cache : VolumeCache
    """

    scenario: Scenario
    seed: int
    template: Template
    lattice: Lattice
    subject_lattice: Lattice
    flows: Mapping[str, LocalFlow]
    scanner: Scanner
    near_brain: np.ndarray
    cache: VolumeCache

    def volume(self, subject: Subject, *, noisy: bool = True, keep: bool = True) -> np.ndarray:
        """Return the volume of a subject, float32, (X, Y, Z); never write to one that is kept."""
        if not keep:
            return self._rendered(subject, noisy)
        key = (subject.number, noisy, *subject.magnitudes.values())
        return self.cache.get(key, partial(self._rendered, subject, noisy))

    def _rendered(self, subject: Subject, noisy: bool) -> np.ndarray:
        scanner = self.scanner_of(subject)
        scanner = scanner if noisy else replace(scanner, noise=0.0)
        return scanner.signal(
            self.tissue(subject), self.lattice, noise_key(self.seed, subject.number)
        )

    def tissue(self, subject: Subject) -> np.ndarray:
        """Return a subject before the scanner: white matter about 1, background 0."""
        image, lattice = self.template.antialiased(self.scenario.spacing_mm)
        return self.warped(image, lattice, subject, near=self.near_brain)

    def warped(
        self, image: np.ndarray, lattice: Lattice, subject: Subject, near: np.ndarray | None = None
    ) -> np.ndarray:
        """Sample an image of the template at the positions where the subject's tissue comes from.

        Parameters
        ----------
        image : ndarray of float32, shape (A, B, C), on `lattice`
        subject : Subject
        near : ndarray of bool, on `subject_lattice`, optional
            Positions to look at: the other voxels are 0.
        """
        anatomy = chord_corrected(self.displacement(subject))
        mask = None if near is None else (near, self.subject_lattice)
        effects = self.effect_displacements(subject)
        return warp_once(
            image, lattice, anatomy, self.subject_lattice, effects, self.lattice, near=mask
        )

    def displacement(self, subject: Subject) -> np.ndarray:
        """Return the displacement at which the template is sampled for a subject without effects.

        Returns
        -------
        ndarray of float32, shape (A, B, C, 3)
            In mm on `subject_lattice`.

        Raises
        ------
        FoldingError
            If the subject's anatomy folds; it names the subject and a variability that would work.
        """
        model, spacing = self.scenario.variability, self.subject_lattice.spacing_mm
        velocity = -model.velocity(self.coefficients(subject), self.subject_lattice)

        def folds(displacement: np.ndarray) -> bool:
            return _kernels.least_jacobian(displacement, np.float32(1 / spacing)) <= 0

        displacement = series_flow(velocity, spacing)
        if folds(displacement):
            share = 0.9
            while folds(flow(np.float32(share) * velocity, spacing)):
                share *= 0.9
            remedy = (
                f"The anatomy of subject {subject.number} would fold. "
                f"Use scenario.variability.scaled({share:.2f})."
            )
            allowed = f"at most {share:.2f} times as variable"
            raise FoldingError("scenario.variability", model, allowed, remedy)
        return displacement

    def coefficients(self, subject: Subject) -> np.ndarray:
        """Return the coefficients of a subject's anatomy: the matched modes, the others drawn."""
        model, generator = self.scenario.variability, stream(self.seed, subject.number, "anatomy")
        coefficients = generator.standard_normal(model.coefficient_count(self.subject_lattice))
        coefficients[model.leading(self.subject_lattice, len(subject.modes))] = subject.modes
        return coefficients

    def effect_displacements(self, subject: Subject) -> list[tuple[np.ndarray, Lattice]]:
        """Return the displacements of the morphology effects that a subject shows.

        T o phi_disease^-1 o phi_bias^-1 o phi_subject^-1: sampling undoes the effect that was
        applied last first.
        """
        magnitudes = subject.magnitudes.items()
        shown = [
            (self.flows[name], size) for name, size in magnitudes if size and name in self.flows
        ]
        return [(effect.at(size), effect.lattice) for effect, size in reversed(shown)]

    def positions(self, subject: Subject) -> np.ndarray:
        """Return the template position of each voxel of a subject, mm: float32, (3, X, Y, Z)."""
        # Coordinates are linear, so that two nodes an axis hold them exactly: they are sampled as
        # any image is.
        low, high = self.template.box_mm
        extent = float((high - low).max()) + 2 * MARGIN_MM
        x, y, z = (float(value) - MARGIN_MM for value in low)
        box = Lattice((2, 2, 2), extent, (x, y, z))
        coordinates = box.points_mm().astype(np.float32)
        return np.stack([self.warped(image, box, subject) for image in coordinates])

    def scanner_of(self, subject: Subject) -> Scanner:
        """Return the scanner with a subject's receive field and intensity effects."""
        scanner = self.scanner
        if self.scenario.bias_field:
            weights = stream(self.seed, subject.number, "bias field").standard_normal(9)
            log_field = (weights * self.scenario.bias_field / 3) @ field_basis(self.template)
            scanner = replace(scanner, bias_field=tuple(log_field.tolist()))
        for name, magnitude in subject.magnitudes.items():
            effect = self.scenario.effects[name]
            if magnitude and isinstance(effect, Intensity):
                scanner = scanner.with_effect(effect, magnitude, self.template)
        return scanner


@lru_cache(maxsize=4)
def renderer_of(scenario: Scenario, seed: int) -> Renderer:
    """Return the renderer of a scenario, with its effects checked and tabulated.

    Raises
    ------
    FoldingError
        If an effect would fold a brain.
    """
    template, table = load_template(scenario.template), design_table(scenario, seed)
    flows = {
        name: local_flow(
            effect,
            template,
            table[f"{name}_magnitude"].to_numpy(),
            field=f"scenario.{name}",
            subjects=table.index.to_numpy(),
            variability=scenario.variability,
        )
        for name, effect in scenario.effects.items()
        if isinstance(effect, Morphology)
    }
    lattice = subject_lattice(template)
    boxes = [effect.lattice for effect in flows.values()]
    return Renderer(
        scenario,
        seed,
        template,
        template.output_lattice(scenario.spacing_mm),
        lattice,
        flows,
        Scanner(noise=scenario.noise, pivot=float(template.t1[template.brain].mean())),
        near_image(*template.antialiased(scenario.spacing_mm), boxes, lattice),
        VolumeCache(CACHE_BYTES),
    )


def clear_cache() -> None:
    """Forget the volumes and deformations that are kept in memory; they are made again when needed.

    Examples
    --------
    >>> import simba_lab as sb
    >>> sb.synthesis.clear_cache()
    """
    renderer_of.cache_clear()
