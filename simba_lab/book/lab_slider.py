"""LabSlider: one slider that is an ipywidget where a kernel runs and plain HTML where none does."""

from __future__ import annotations

import base64
import hashlib
import html
import io
import json
import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from PIL import Image

from simba_lab.core.errors import SimbaError

WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"
WEBP_LIMIT = 16383  # pixels an image may be high
# Set where pages are made (the book's build): a widget's state would only swell them.
STATIC_VARIABLE = "SIMBA_LAB_STATIC"


class LabSlider:
    """A picture that follows a slider.

    In a notebook with a kernel the picture is drawn for any value of the slider. In a page without
    one, all frames are drawn beforehand and a few lines of JavaScript show the chosen one: no
    library, no network. Both have a text alternative and work by keyboard.

    Parameters
    ----------
    draw : callable
        Value to picture: floats in [0, 1], shape (rows, columns) for grey or (rows, columns, 3) for
        colour, the same for all values.
    values : sequence of float
        Increasing slider positions of the frames.
    label : str
        What the slider changes.
    alt : str
        What the picture shows, for those who do not see it.
    unit : str
        Unit of the values.
    start : float, optional
        First position; the middle one by default.
    marks : sequence of (text, x, y)
        Words over the picture, such as orientation letters, at shares of its width and height.
    width : int
        Largest width on the page in pixels.
    form : str
        How values are written (format specification).
    play : float, optional
        Seconds a frame: adds a button that runs through the frames once. Nothing moves before it is
        pressed.
    """

    def __init__(
        self,
        draw: Callable[[float], np.ndarray],
        values: Sequence[float],
        *,
        label: str,
        alt: str,
        unit: str = "",
        start: float | None = None,
        marks: Sequence[tuple[str, float, float]] = (),
        width: int = 720,
        form: str = "+.1f",
        play: float | None = None,
    ) -> None:
        self.values = [float(value) for value in values]
        if len(self.values) < 2 or np.any(np.diff(self.values) <= 0):
            raise SimbaError("values", list(values), "at least two increasing numbers")
        if not alt.strip():
            raise SimbaError("alt", alt, "a sentence that says what the picture shows")
        self.draw, self.label, self.alt, self.unit = draw, label, alt, unit
        start = self.values[len(self.values) // 2] if start is None else float(start)
        self.start = int(np.argmin(np.abs(np.subtract(self.values, start))))
        if play is not None and not 0.05 <= play <= 10:
            raise SimbaError(
                "play", play, "from 0.05 to 10 seconds a frame", "0.5 can be followed by eye."
            )
        self.marks, self.width, self.form, self.play = tuple(marks), width, form, play

    def text(self, value: float) -> str:
        """Return a value as the slider writes it."""
        return f"{value:{self.form}} {self.unit}".strip()

    def frame(self, value: float) -> np.ndarray:
        """Return the picture for a value, uint8."""
        return (np.clip(np.nan_to_num(self.draw(value)), 0, 1) * 255).round().astype(np.uint8)

    def html(self) -> str:
        """Return the slider as self-contained HTML."""
        first, count = self.frame(self.values[0]), len(self.values)
        rows, columns = first.shape[:2]
        # One above the other, and beside each other where that would be higher than a WebP image
        # can be.
        high = max(1, min(count, WEBP_LIMIT // rows))
        wide = -(-count // high)
        sprite = Image.new(Image.fromarray(first).mode, (wide * columns, high * rows))
        for number, value in enumerate(self.values):
            pixels = self.frame(value) if number else first
            if pixels.shape != first.shape:
                raise SimbaError(
                    f"draw({value})",
                    f"shape {pixels.shape}",
                    f"of the shape of the first, {first.shape}",
                )
            sprite.paste(Image.fromarray(pixels), (number // high * columns, number % high * rows))
        sprite = _data_uri(sprite, "WEBP", quality=86, method=6)
        key = "lab" + hashlib.blake2b((self.label + sprite).encode(), digest_size=6).hexdigest()
        texts = [self.text(value) for value in self.values]
        marks = "".join(
            f'<span aria-hidden="true" style="left:{100 * x:.2f}%;top:{100 * y:.2f}%">{html.escape(text)}</span>'
            for text, x, y in self.marks
        )
        last, button, player = count - 1, "", ""
        right, down = max(wide - 1, 1), max(high - 1, 1)

        def place(frame: int) -> str:
            return f"{100 * (frame // high) / right:.4f}% {100 * (frame % high) / down:.4f}%"

        if self.play:
            button = '<button type="button">Play</button>'
            player = f"""
const b=f.querySelector("button");let timer=0;const stop=()=>{{clearInterval(timer);timer=0;b.textContent="Play"}};
b.addEventListener("click",()=>{{if(timer)return stop();if(+i.value==={last})i.value=0;show();b.textContent="Pause";
timer=setInterval(()=>{{i.value=+i.value+1;show();if(+i.value==={last})stop()}},{1000 * self.play:.0f})}});"""
        return f"""<figure class="lab-slider" id="{key}">
<style>
#{key}{{max-width:{self.width}px;margin:1rem 0}}
#{key} .picture{{position:relative;width:100%;aspect-ratio:{columns}/{rows};border-radius:4px;
background:#000 url({sprite}) {place(self.start)}/{100 * wide}% {100 * high}%}}
#{key} .picture span{{position:absolute;transform:translate(-50%,-50%);color:#fff;font:600 13px sans-serif;
text-shadow:0 0 3px #000}}
#{key} label{{display:flex;gap:.75rem;align-items:center;margin-top:.5rem;flex-wrap:wrap}}
#{key} input{{flex:1;min-width:8rem;accent-color:#0072b2}}
#{key} output{{font-variant-numeric:tabular-nums;min-width:4rem;text-align:right}}
#{key} button{{font:inherit;padding:.1rem .8rem;margin-top:.5rem;border:1px solid #0072b2;border-radius:4px;
background:transparent;color:inherit;cursor:pointer;min-width:5rem}}
</style>
<div class="picture" role="img" aria-label="{html.escape(self.alt, quote=True)}">{marks}</div>
<label><span>{html.escape(self.label)}</span>
<input type="range" min="0" max="{last}" step="1" value="{self.start}" aria-valuetext="{html.escape(texts[self.start])}">
<output>{html.escape(texts[self.start])}</output></label>{button}
<script>(()=>{{const f=document.getElementById("{key}"),t={json.dumps(texts)},p=f.querySelector(".picture"),
i=f.querySelector("input"),o=f.querySelector("output");
const show=()=>{{const k=+i.value,x=100*Math.floor(k/{high})/{right},y=100*(k%{high})/{down};
p.style.backgroundPosition=x+"% "+y+"%";o.value=t[k];
i.setAttribute("aria-valuetext",t[k])}};i.addEventListener("input",show);show();{player}}})()</script></figure>"""

    def widget(self) -> Any:
        """Return the slider as an ipywidget, for a running kernel."""
        import ipywidgets  # not needed to make pages

        step = float(np.min(np.diff(self.values))) / 2
        slider = ipywidgets.FloatSlider(
            min=self.values[0],
            max=self.values[-1],
            step=step,
            value=self.values[self.start],
            description=self.label,
            readout_format=self.form,
            style={"description_width": "initial"},
            layout={"width": f"{self.width}px"},
        )
        picture = ipywidgets.Image(
            value=self._png(slider.value), format="png", layout={"width": f"{self.width}px"}
        )
        picture.alt = self.alt
        slider.observe(lambda change: setattr(picture, "value", self._png(change["new"])), "value")
        if not self.play:
            return ipywidgets.VBox([picture, slider])
        player = ipywidgets.Play(
            min=0, max=len(self.values) - 1, interval=round(1000 * self.play), description="Play"
        )
        player.observe(lambda change: setattr(slider, "value", self.values[change["new"]]), "value")
        return ipywidgets.VBox([picture, slider, player])

    def _png(self, value: float) -> bytes:
        stream = io.BytesIO()
        Image.fromarray(self.frame(value)).save(stream, "PNG")
        return stream.getvalue()

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> dict[str, Any]:
        bundle: dict[str, Any] = {
            "text/plain": f"LabSlider({self.label!r})",
            "text/html": self.html(),
        }
        if not os.environ.get(STATIC_VARIABLE):
            live = self.widget()._repr_mimebundle_()
            bundle[WIDGET_VIEW] = live[WIDGET_VIEW]
        return bundle


def _data_uri(picture: Image.Image, form: str, **options: Any) -> str:
    stream = io.BytesIO()
    picture.save(stream, form, **options)
    return f"data:image/{form.lower()};base64,{base64.b64encode(stream.getvalue()).decode()}"
