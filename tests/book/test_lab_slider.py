"""A slider works with a kernel and without one, with a mouse and without one."""

import base64
import io
import re

import numpy as np
import pytest
from PIL import Image

import simba_lab as sb
from simba_lab.book.lab_slider import STATIC_VARIABLE, WIDGET_VIEW


def slider(**options):
    options = {"label": "Size <x>", "alt": 'A "ramp"', "unit": "mm"} | options
    return sb.book.LabSlider(lambda value: np.full((4, 6), value), [0.0, 0.5, 1.0], **options)


def test_slider_works_without_network_and_without_a_mouse():
    page = slider(marks=[("L", 0.1, 0.5)]).html()
    assert "http" not in page
    assert 'type="range"' in page and 'aria-valuetext="+0.5 mm"' in page
    assert 'aria-label="A &quot;ramp&quot;"' in page and "Size &lt;x&gt;" in page
    assert page == slider(marks=[("L", 0.1, 0.5)]).html()  # the same page gives the same bytes


def test_many_high_frames_fit_into_one_picture():
    """A WebP image is at most 16383 pixels high: the frames go on in a second column."""
    shades = np.linspace(0.2, 0.8, 5)
    page = sb.book.LabSlider(
        lambda k: np.full((4000, 8), shades[int(k)]), range(5), label="frame", alt="grey", start=4
    ).html()
    picture = np.asarray(
        Image.open(
            io.BytesIO(base64.b64decode(re.search(r"base64,([^)]+)", page).group(1)))
        ).convert("L")
    )
    assert picture.shape == (16000, 16)
    np.testing.assert_allclose(picture[2000::4000, 4] / 255, shades[:4], atol=0.03)
    assert picture[2000, 12] / 255 == pytest.approx(shades[4], abs=0.03)
    assert "100.0000% 0.0000%/200% 400%" in page


def test_a_slider_may_play_and_does_not_otherwise():
    page = slider(label="dose", alt="a grey square", play=0.5).html()
    assert ">Play</button>" in page
    assert "},500)" in page
    assert "</button>" not in slider(label="dose", alt="a grey square").html()
    _picture, moved, player = slider(label="dose", alt="a grey square", play=0.5).widget().children
    player.value = 2
    assert moved.value == 1.0
    with pytest.raises(sb.SimbaError, match="play"):
        slider(label="dose", alt="a grey square", play=0)


def test_slider_is_a_widget_with_a_kernel_and_html_without(monkeypatch):
    assert WIDGET_VIEW in slider()._repr_mimebundle_()
    monkeypatch.setenv(STATIC_VARIABLE, "1")
    assert set(slider()._repr_mimebundle_()) == {"text/plain", "text/html"}


def test_widget_draws_what_the_slider_says():
    box = slider().widget()
    picture, control = box.children
    before = picture.value
    control.value = 1.0
    assert picture.value != before


@pytest.mark.parametrize("bad", [{"alt": " "}])
def test_slider_needs_a_text_alternative(bad):
    with pytest.raises(sb.SimbaError, match="alt"):
        slider(**bad)


def test_slider_needs_increasing_values():
    with pytest.raises(sb.SimbaError, match="increasing"):
        sb.book.LabSlider(lambda v: np.zeros((2, 2)), [1, 0], label="x", alt="y")


@pytest.mark.parametrize(("other", "said"), [((3, 2), "(3, 2)"), ((1, 2, 3), "(1, 2, 3)")])
def test_frames_of_different_shapes_are_refused(other, said):
    shapes = {1: (1, 2), 2: other}
    with pytest.raises(sb.SimbaError) as refusal:
        sb.book.LabSlider(lambda v: np.zeros(shapes[v]), [1, 2], label="x", alt="y").html()
    assert str(refusal.value).startswith("draw(2.0) must be of the shape of the first, (1, 2)")
    assert said in str(refusal.value)
