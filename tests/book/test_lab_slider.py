"""A slider works with a kernel and without one, with a mouse and without one."""

import base64
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

import simba_lab as sb
from simba_lab.book.lab_slider import STATIC_VARIABLE, WIDGET_VIEW


def slider(**options):
    options = {"label": "Size <x>", "alt": 'A "ramp"', "form": "{:+.1f} mm"} | options
    return sb.book.LabSlider(lambda value: np.full((4, 6), value), [0.0, 0.5, 1.0], **options)


def test_slider_works_without_network_and_without_a_mouse():
    page = slider(marks=[("L", 0.1, 0.5)]).html()
    assert "http" not in page
    assert 'type="range"' in page and 'aria-valuetext="+0.5 mm"' in page
    assert 'aria-label="A &#34;ramp&#34;"' in page and "Size &lt;x&gt;" in page
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
    assert "setInterval(step, 500)" in page
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


def test_slider_needs_a_text_alternative():
    with pytest.raises(sb.SimbaError, match="alt"):
        slider(alt=" ")


def test_nothing_that_is_given_becomes_markup():
    """Labels, marks and values are texts, in the page and in its script."""
    hostile = "</script><script>alert(1)</script>"
    page = slider(
        label=hostile, alt=hostile, form="{:.1f}" + hostile, marks=[(hostile, 0, 0)]
    ).html()
    assert page.count("<script>") == 1 and page.count("</script>") == 1
    assert hostile not in page


class Elements(HTMLParser):
    """The elements of a page with their attributes."""

    def __init__(self, page):
        super().__init__()
        self.elements = []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, [name for name, _ in attributes]))


@pytest.mark.parametrize("field", ["label", "alt", "form", "marks"])
def test_no_text_leaves_its_place_in_the_page(field):
    """Neither an element comes of it, nor an attribute, nor a rule of style."""
    hostile = "\"' onload=alert(1)></style><img src=x onerror=alert(1)>"
    given = {"marks": [(hostile, 0, 0)], "form": "{:.1f}" + hostile}
    page = slider(**{"marks": [("L", 0, 0)], field: given.get(field, hostile)}).html()
    plain = slider(marks=[("L", 0, 0)]).html()
    assert Elements(page).elements == Elements(plain).elements
    assert hostile not in page


def test_a_width_is_no_text():
    """The widths in the page are counted from the picture; nobody can name one."""
    with pytest.raises(TypeError, match="width"):
        slider(width="1px}</style><script>alert(1)</script>")


@pytest.mark.parametrize(
    "form", ["{:d}", "{", "{} {}", "{name}", "{0.__class__}", "{:9999999999}", "no field"]
)
def test_a_form_that_writes_no_number_is_refused(form):
    with pytest.raises(sb.SimbaError, match="form must be a format string"):
        slider(form=form)


def test_charts_keep_their_width_and_slices_are_enlarged():
    def width(columns):
        page = sb.book.LabSlider(
            lambda value: np.zeros((2, columns)), [0, 1], label="x", alt="y"
        ).html()
        return re.search(r"max-width:(\d+)px", page).group(1)

    assert [width(columns) for columns in (96, 648, 900)] == ["720", "648", "720"]


def test_slider_needs_increasing_values():
    with pytest.raises(sb.SimbaError, match="increasing"):
        sb.book.LabSlider(lambda v: np.zeros((2, 2)), [1, 0], label="x", alt="y")


@pytest.mark.parametrize("second", [(3, 2), (1, 2, 3)])
def test_frames_of_different_shapes_are_refused(second):
    shapes = {1: (1, 2), 2: second}
    with pytest.raises(sb.SimbaError) as refusal:
        sb.book.LabSlider(lambda v: np.zeros(shapes[v]), [1, 2], label="x", alt="y").html()
    assert str(refusal.value).startswith("draw(2.0) must be of the shape of the first, (1, 2)")
    assert str(second) in str(refusal.value)
