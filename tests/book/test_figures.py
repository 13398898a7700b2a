"""Figures show what they say: left is left, and axes have names."""

import numpy as np
import pandas as pd
import pytest

import simba_lab as sb
from simba_lab.book import figures


def test_montage_puts_left_where_its_marks_say(template):
    mask = template.region("Insula_L").astype(float)
    picture = figures.montage(mask, template.lattice.affine, (-36, 4, 2))
    marks = figures.montage_marks(mask.shape)
    assert [letter for letter, *_ in marks] == ["L", "R", "L", "R", "P", "A"]
    for panel in (0, 1):  # axial and coronal: the left insula is nearer to the L
        left, right = (x * picture.shape[1] for _, x, _ in marks[2 * panel : 2 * panel + 2])
        columns = np.flatnonzero(picture[:, int(left) : int(right)].any(axis=0)) + int(left)
        assert abs(columns.mean() - left) < abs(columns.mean() - right)
    front = figures.montage(
        template.region("Frontal_Med_Orb_L").astype(float), template.lattice.affine, (-6, 50, -10)
    )
    start, stop = (x * picture.shape[1] for _, x, _ in marks[4:])
    columns = np.flatnonzero(front[:, int(start) : int(stop)].any(axis=0)) + int(start)
    assert abs(columns.mean() - stop) < abs(
        columns.mean() - start
    )  # the frontal lobe is nearer to the A


def test_tint_and_outline():
    grey = np.full((5, 5), 0.5)
    tinted = figures.tinted(grey, np.where(np.eye(5) > 0, 1.0, 0.0), limit=0.5)
    np.testing.assert_allclose(tinted[0, 1], 0.5)
    assert tinted[0, 0, 0] > tinted[0, 0, 2]  # positive is orange: more red than blue
    mask = np.zeros((5, 5), bool)
    mask[1:4, 1:4] = True
    outline = figures.outlined(grey, mask)
    np.testing.assert_allclose(outline[2, 2], 0.5)
    assert outline[1, 1, 0] > outline[1, 1, 2]


def test_every_figure_has_a_title_and_labels_and_draws(cohort, template):
    rates = sb.evaluate(sb.SimBANet((2,), seed=0), cohort.test)
    effects = sb.twin_effect(sb.SimBANet((2,), seed=0), cohort.test)
    history = pd.DataFrame(
        {"train_loss": [0.7, 0.6], "validation_loss": [0.7, 0.65], "kept": [False, True]}
    )
    grams = {"block1": np.diag(np.arange(1.0, 21)) + np.outer(np.arange(20), np.arange(20))}
    half, quarter = np.arange(20) % 2, np.arange(20) // 2 % 2
    probe = sb.probe(grams, half, floors={"same": [grams, grams]})
    seeds = pd.MultiIndex.from_product([["biased"], [0, 1]], names=["network", "seed"])
    over_seeds = pd.DataFrame({"block1": [0.5, 0.6], "block2": [0.7, 0.6]}, index=seeds)
    for figure in (
        figures.rates(rates, title="Rates"),
        figures.intervals(effects.assign(kind="x"), "logit", title="Effect", label="logit"),
        figures.learning(history, title="Loss"),
        figures.probes(probe, title="Probes", floors={"floor_same": "same"}),
        figures.per_layer(
            over_seeds, title="Seeds", label="AUROC", names={"biased": "biased"}, reference=0.5
        ),
        figures.learning_curves(
            {"this": sb.learning_curve(grams, half, folds=3)}, "block1", title="Curve"
        ),
        figures.plane(np.eye(20)[:, :2], half, quarter, title="Plane", axes_labels=["one", "two"]),
        figures.groups_on_axis(
            sb.interpretation.projections(grams, half, quarter, folds=3), title="Axis"
        ),
        figures.arrival(
            {"biased": over_seeds.T.set_axis(["mark", "disease"], axis=1)}, title="Epoch"
        ),
        figures.alignment({"both": sb.interpretation.cka_matrix(sb.cka(grams))}, title="CKA"),
    ):
        axes = figure.axes[0]
        assert axes.get_title() and (axes.get_xlabel() or axes.get_ylabel() or axes.images)
        assert figure._repr_png_().startswith(b"\x89PNG")
    brains = figures.brains(
        {"one": cohort.array(0)}, cohort.lattice.affine, (0, 0, 0), title="Brains"
    )
    assert brains._repr_png_().startswith(b"\x89PNG")
    with pytest.raises(sb.SimbaError, match="at least one volume"):
        figures.brains({}, np.eye(4), (0, 0, 0), title="x")
