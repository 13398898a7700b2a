"""The page of an audit: what it says, that it opens anywhere, and that nobody's names run in it."""

import dataclasses
import re
import shutil
import subprocess
from html.parser import HTMLParser
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest

import simba_lab as sb
from simba_lab.auditing.report import html_of

HOSTILE = "<script>alert('x')</script>\"&"
FORMULA = "=cmd|' /C calc'!A0"


def audit_of(names=("scanner", "putamen", "receive_field")):
    marks = pd.DataFrame(
        {
            "effect": [1.93, 0.12, -0.44],
            "effect_low": [1.62, -0.02, -0.81],
            "effect_high": [2.21, 0.25, -0.05],
            "flips": [0.34, 0.02, np.nan],
            "bound": 0.5,
            "verdict": ["used", "not used", "cannot tell"],
            "needs": ["", "", "about 130 scans."],
        },
        index=pd.Index(names, name="mark"),
    )
    layers = pd.DataFrame(
        {"read": [0.9, 0.8], "read_low": [0.8, 0.7], "read_high": [1.0, 0.9], "passes": 0.5},
        index=pd.MultiIndex.from_product(
            [[names[0]], ["conv1", names[1]]], names=["mark", "layer"]
        ),
    )
    rates = pd.DataFrame({"gap": [0.1]}, index=pd.Index([names[0]], name="column"))
    provenance = {"command": f"simba-lab audit {names[0]}", "scans": {"folder": names[1]}}
    return sb.auditing.Audit(
        marks, layers, rates=rates, notes=[names[0]], provenance=provenance, settings={"n": 48}
    )


class Page(HTMLParser):
    """Elements with their attributes, and the text of headings and cells."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.texts, self.open = [], {}, []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in ("meta", "line", "rect", "circle", "path", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag in self.open:
            while self.open.pop() != tag:
                pass

    def handle_data(self, data):
        if self.open:
            self.texts.setdefault(self.open[-1], []).append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "report.html"
    return audit_of().save(path).read_text(encoding="utf-8")


def test_first_screen_says_each_verdict_in_a_sentence(text):
    start = text[text.index("<main>") : text.index("A. Does the answer move")]
    assert "3 marks: 1 used, 1 not used, 1 cannot tell." in start
    for words in (
        "moves the answer by +1.93 spreads (95 % interval +1.62 to +2.21), beyond the bound of 0.5",
        "The decision changes in 34 % of the scans.",
        "+0.12 spreads (95 % interval −0.02 to +0.25): within the bound of 0.5",
        "What would settle it:</strong> about 130 scans.",
    ):
        assert words in start


def test_cautions_are_on_the_first_screen_and_zeros_have_no_sign():
    audit = audit_of()
    marks = audit.marks.assign(effect_low=-0.001)
    page = html_of(dataclasses.replace(audit, marks=marks, cautions=["It <knows> nothing."]))
    start = page[page.index("<main>") : page.index("A. Does the answer move")]
    assert start.index("It &lt;knows&gt; nothing.") < start.index("This mark alone")
    assert "−0.00 " not in page and "interval 0.00 to" in start
    assert "Read this first" not in html_of(audit)


def test_with_control_networks_the_page_shows_what_the_verdict_is_about():
    audit = audit_of()
    excess = {"control": 1.9, "excess": [0.03, -1.78, 0.1], "excess_low": -0.2, "excess_high": 0.2}
    page = html_of(dataclasses.replace(audit, marks=audit.marks.assign(**excess)))
    said = "by +1.93 spreads, and that of control networks by +1.90: the excess is +0.03 spreads"
    assert said in page and "excess over control networks, spreads" in page
    figure = page[page.index("<svg") : page.index("</svg>")]
    assert "−1.78 (−0.20 to 0.20)" in figure and "1.93" not in figure


def test_questions_are_kept_apart_and_the_third_is_called_correlational(text):
    page = Page(text)
    headings = page.texts["h2"]
    assert headings[0].startswith("A. ") and headings[1].startswith("C. ")
    assert "correlational" in headings[1] and "What this audit cannot show" in headings
    layers = text.index("Layer by layer")
    assert text.index("A. Does") < layers < text.index("C. What is known") < text.index(">gap<")
    assert "0.9 (0.8 to 1)" in text and "simba-lab audit scanner" in text


def test_the_page_is_accessible_as_far_as_its_elements_tell(text):
    page = Page(text)
    assert page.all("html")[0]["lang"] == "en" and len(page.all("h1")) == 1
    assert len(page.all("main")) == len(page.all("header")) == len(page.all("footer")) == 1
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch("h[1-6]", tag)]
    assert all(after - before <= 1 for before, after in pairwise(levels))
    assert len(page.all("table")) == len(page.all("caption")) == 3
    assert all(cell["scope"] in ("row", "col") for cell in page.all("th"))
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    for _, attributes in page.elements:
        assert set(attributes.get("aria-labelledby", "").split()) <= set(ids)
    image = page.all("svg")[0]
    assert image["role"] == "img" and "scanner: 1.93 (1.62 to 2.21), used." in text
    assert all("aria-label" in box for box in page.all("div") if box.get("tabindex"))


def luminance(colour):
    parts = np.array([int(colour[start : start + 2], 16) for start in (1, 3, 5)]) / 255
    linear = np.where(parts <= 0.03928, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def contrast(first, second):
    low, high = sorted([luminance(first), luminance(second)])
    return (high + 0.05) / (low + 0.05)


def test_colours_have_contrast_in_light_dark_and_print(text):
    themes = re.findall(r":root \{(.*?)\}", text, flags=re.S)
    assert len(themes) == 3
    for theme in themes:
        colours = dict(re.findall(r"--([\w-]+): (#[0-9a-f]+)", theme))
        full = {
            name: c if len(c) == 7 else "#" + "".join(2 * x for x in c[1:])
            for name, c in colours.items()
        }
        pairs = [("ink", "paper"), ("soft", "paper"), ("ink", "panel"), ("ink", "band")]
        for look in ("used", "free", "open"):
            pairs += [(look, "paper"), (look, f"{look}-bg"), ("ink", f"{look}-bg")]
        for front, back in pairs:
            assert contrast(full[front], full[back]) >= 4.5, (front, back)


def test_nothing_is_loaded_from_anywhere_and_nothing_runs(text):
    page = Page(text)
    tags = {tag for tag, _ in page.elements}
    assert not tags & {"script", "link", "img", "iframe", "object", "a"}
    assert "default-src 'none'" in text and not re.search(r"url\(|@import|src=", text)
    assert set(re.findall(r"https?://[^\s\"']+", text)) == {"http://www.w3.org/2000/svg"}


def test_hostile_names_are_text_on_the_page_and_in_the_tables(tmp_path):
    path = audit_of((HOSTILE, FORMULA, "+1")).save(tmp_path / "report.html")
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    assert not page.all("script") and HOSTILE not in text
    assert any(HOSTILE in word for word in page.texts["span"])
    assert all(not name.startswith("on") for _, attributes in page.elements for name in attributes)
    for file in sorted(tmp_path.glob("*.csv")):
        for line in file.read_text(encoding="utf-8").splitlines():
            assert not re.match(r'"?[=@]', line), (file, line)
    assert f"'{FORMULA}" in (tmp_path / "report_marks.csv").read_text(encoding="utf-8")
    assert f"'{FORMULA}" in (tmp_path / "report_layers.csv").read_text(encoding="utf-8")


def test_nothing_is_written_over_and_nothing_is_left(tmp_path):
    (tmp_path / "report_layers.csv").write_text("mine")
    with pytest.raises(sb.SimbaError, match="Nothing is overwritten"):
        audit_of().save(tmp_path / "report.html")
    assert [path.name for path in tmp_path.iterdir()] == ["report_layers.csv"]
    with pytest.raises(sb.SimbaError, match=r"a file called report.html"):
        audit_of().save(tmp_path / "report.pdf")
    with pytest.raises(sb.SimbaError, match="in a folder that exists"):
        audit_of().save(tmp_path / "absent" / "report.html")


def test_fifty_scans_and_many_layers_stay_small(tmp_path):
    names = [f"mark{number}" for number in range(20)]
    layers = pd.MultiIndex.from_product([names, [f"layer{n}" for n in range(40)]])
    table = pd.DataFrame({"read": 0.5, "read_low": 0.4, "read_high": 0.6}, index=layers)
    audit = audit_of()
    many = sb.auditing.Audit(audit.marks, table.rename_axis(["mark", "layer"]))
    assert many.save(tmp_path / "report.html").stat().st_size < 5e6


@pytest.mark.skipif(not shutil.which("chromium"), reason="needs chromium")
def test_a_browser_shows_it_without_a_complaint(tmp_path):
    path = audit_of((HOSTILE, FORMULA, "x" * 300)).save(tmp_path / "report.html")
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", f"file://{path}"]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert "CONSOLE" not in shown.stderr and "cannot tell" in shown.stdout
