"""LabSlider: a slider that is an ipywidget where a kernel runs and plain HTML where none does."""

from __future__ import annotations

import base64
import hashlib
import io
import os
import re
import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import jinja2
import numpy as np
from PIL import Image

from simba_lab.core.border import checks_arguments
from simba_lab.core.errors import SimbaError, Words

WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"
WEBP_LIMIT = 16383  # rows that a WebP image may have
# Set where pages are made (the book's build): the state of a widget would only swell them.
STATIC_VARIABLE = "SIMBA_LAB_STATIC"
LONGEST_NUMBER = 40  # characters
# Charts are shown at their own width in pixels, slices of voxels are enlarged to the greatest.
SMALLEST_CHART, GREATEST_WIDTH = 400, 720


@checks_arguments
class LabSlider:
    """A picture that follows a slider.

    In a notebook with a kernel, the picture is drawn for any value of the slider. In a page without
    one, all frames are drawn beforehand and a few lines of JavaScript show the chosen frame: no
    library, no network. Both have a text alternative and work by keyboard.

    Parameters
    ----------
    draw : callable
        Value to picture: floats in [0, 1], shape (rows, columns) for grey or (rows, columns, 3) for
        colour, the same shape for all values.
    values : sequence of float
        Slider positions of the frames, increasing.
    label : str
        What the slider changes.
    alt : str
        What the picture shows, for readers who do not see it.
    form : str
        How a value is written, as a format string with one field, such as ``"{:+.1f} mm"``.
    start : float, optional
        First position; the middle one by default.
    marks : sequence of (text, x, y)
        Words over the picture, such as orientation letters, at shares of its width and height.
    play : float, optional
        Seconds per frame: adds a button that runs through the frames once. Nothing moves before it
        is pressed.

    Raises
    ------
    SimbaError
        If the values do not increase, the text alternative is empty, the format writes no number,
        or frames differ in shape.

    Examples
    --------
    >>> import numpy as np
    >>> import simba_lab as sb
    >>> grey = lambda value: np.full((4, 6), value)
    >>> options = {"label": "Grey", "alt": "A square", "form": "{:.0%}"}
    >>> slider = sb.book.LabSlider(grey, [0.0, 0.5, 1.0], **options)
    >>> slider.text(0.5)
    '50%'
    >>> slider.frame(1.0).shape
    (4, 6)
    """

    def __init__(
        self,
        draw: Callable[[float], np.ndarray],
        values: Sequence[float],
        *,
        label: str,
        alt: str,
        form: str = "{:+.1f}",
        start: float | None = None,
        marks: Sequence[tuple[str, float, float]] = (),
        play: float | None = None,
    ) -> None:
        self.values = [float(value) for value in values]
        if len(self.values) < 2 or np.any(np.diff(self.values) <= 0):
            raise SimbaError("values", list(values), "at least two increasing numbers")
        if not alt.strip():
            raise SimbaError("alt", alt, "a sentence that says what the picture shows")
        if play is not None and not 0.05 <= play <= 10:
            remedy = "The eye can follow a frame every 0.5 seconds."
            raise SimbaError("play", play, "from 0.05 to 10 seconds per frame", remedy)
        start = self.values[len(self.values) // 2] if start is None else float(start)
        self.start = int(np.argmin(np.abs(np.subtract(self.values, start))))
        _specification(form)
        self.draw, self.label, self.alt, self.form = draw, label, alt, form
        self.marks, self.play = tuple(marks), play

    def text(self, value: float) -> str:
        """Return a value as the slider writes it."""
        return self.form.format(value)

    def frame(self, value: float) -> np.ndarray:
        """Return the picture for a value, uint8."""
        return (np.clip(np.nan_to_num(self.draw(value)), 0, 1) * 255).round().astype(np.uint8)

    def html(self) -> str:
        """Return the slider as self-contained HTML."""
        frames = [self.frame(value) for value in self.values]
        for value, pixels in zip(self.values, frames, strict=True):
            if pixels.shape != frames[0].shape:
                allowed = f"of the shape of the first, {frames[0].shape}"
                raise SimbaError(f"draw({value})", Words(f"shape {pixels.shape}"), allowed)
        sprite = Sprite.of(frames)
        identity = hashlib.blake2b((self.label + sprite.uri).encode(), digest_size=6)
        return _template().render(
            key=f"lab{identity.hexdigest()}",
            sprite=sprite,
            positions=[sprite.position(number) for number in range(len(frames))],
            texts=[self.text(value) for value in self.values],
            width=_width(sprite.columns),
            label=self.label,
            alt=self.alt,
            start=self.start,
            marks=self.marks,
            play=self.play,
        )

    def widget(self) -> Any:
        """Return the slider as an ipywidget, for a running kernel."""
        import ipywidgets  # not needed to make pages

        layout = {"width": f"{_width(self.frame(self.values[0]).shape[1])}px"}
        slider = ipywidgets.FloatSlider(
            min=self.values[0],
            max=self.values[-1],
            step=float(np.min(np.diff(self.values))) / 2,
            value=self.values[self.start],
            description=self.label,
            readout_format=_specification(self.form),
            style={"description_width": "initial"},
            layout=layout,
        )
        picture = ipywidgets.Image(value=self._png(slider.value), format="png", layout=layout)
        picture.alt = self.alt
        slider.observe(lambda change: setattr(picture, "value", self._png(change["new"])), "value")
        if not self.play:
            return ipywidgets.VBox([picture, slider])
        interval = round(1000 * self.play)
        player = ipywidgets.Play(min=0, max=len(self.values) - 1, interval=interval)
        player.observe(lambda change: setattr(slider, "value", self.values[change["new"]]), "value")
        return ipywidgets.VBox([picture, slider, player])

    def _png(self, value: float) -> bytes:
        return _encoded(Image.fromarray(self.frame(value)), "PNG")

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> dict[str, Any]:
        bundle: dict[str, Any] = {
            "text/plain": f"LabSlider({self.label!r})",
            "text/html": self.html(),
        }
        if not os.environ.get(STATIC_VARIABLE):
            bundle[WIDGET_VIEW] = self.widget()._repr_mimebundle_()[WIDGET_VIEW]
        return bundle


@dataclass(frozen=True)
class Sprite:
    """All frames in one image, of which a page shows one at a time.

    Frames stand one below the other, in as many columns as the limit of WebP images requires.
    """

    uri: str
    rows: int
    columns: int
    across: int
    down: int

    @classmethod
    def of(cls, frames: Sequence[np.ndarray]) -> Sprite:
        """Return the sprite of frames of one shape, uint8."""
        rows, columns = frames[0].shape[:2]
        down = max(1, min(len(frames), WEBP_LIMIT // rows))
        across = -(-len(frames) // down)
        sheet = Image.new(Image.fromarray(frames[0]).mode, (across * columns, down * rows))
        for number, pixels in enumerate(frames):
            corner = (number // down * columns, number % down * rows)
            sheet.paste(Image.fromarray(pixels), corner)
        encoded = base64.b64encode(_encoded(sheet, "WEBP", quality=86, method=6)).decode()
        return cls(f"data:image/webp;base64,{encoded}", rows, columns, across, down)

    @property
    def size(self) -> str:
        """The size of the sprite, in per cent of a frame, as CSS writes it."""
        return f"{100 * self.across}% {100 * self.down}%"

    def position(self, number: int) -> str:
        """Return the position at which the page shows a frame, as CSS writes it."""
        column, row = divmod(number, self.down)
        right, bottom = max(self.across - 1, 1), max(self.down - 1, 1)
        return f"{100 * column / right:.4f}% {100 * row / bottom:.4f}%"


@cache
def _template() -> jinja2.Template:
    text = (files("simba_lab.book") / "lab_slider.html").read_text(encoding="utf-8")
    return jinja2.Environment(autoescape=True).from_string(text)


def _width(columns: int) -> int:
    """Return the largest width of a picture on the page, in pixels."""
    return min(columns, GREATEST_WIDTH) if columns >= SMALLEST_CHART else GREATEST_WIDTH


def _specification(form: str) -> str:
    """Return the format specification of the one field of a format string."""
    try:
        parsed = string.Formatter().parse(form)
        ((name, field),) = [(name, field or "") for _, name, field, _ in parsed if name is not None]
        numbers = map(int, re.findall(r"\d+", field))  # widths and precisions
        if name in ("", "0") and "{" not in field and max(numbers, default=0) <= LONGEST_NUMBER:
            form.format(0.0)
            return field
    except ValueError:  # of Python: it is no format string, or not of numbers, or has more fields
        pass
    raise SimbaError("form", form, "a format string with one field, such as '{:+.1f} mm'")


def _encoded(picture: Image.Image, name: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, name, **options)
    return stream.getvalue()
