"""Check that built pages are whole without a network: nothing foreign, missing, or dead."""

import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

# Attributes that make a browser load something; links that a reader may follow are not among them.
LOADED = {
    "script": "src",
    "img": "src",
    "source": "src",
    "iframe": "src",
    "audio": "src",
    "video": "src",
}


class Resources(HTMLParser):
    """Collects what a page loads, and pictures without a text alternative."""

    def __init__(self):
        super().__init__()
        self.loaded, self.silent = [], []

    def handle_starttag(self, tag, attrs):
        """Note what the tag loads."""
        attributes = dict(attrs)
        if tag in LOADED and attributes.get(LOADED[tag]):
            self.loaded.append(attributes[LOADED[tag]])
        if tag == "link" and attributes.get("rel") in (
            "stylesheet",
            "preload",
            "icon",
            "shortcut icon",
            "modulepreload",
        ):
            self.loaded.append(attributes["href"])
        if tag == "img" and not attributes.get("alt", "").strip():
            self.silent.append(attributes.get("src", "")[:80])


def problems(page: Path) -> list[str]:
    """Return what is wrong with a page."""
    text = page.read_text(encoding="utf-8")
    faults = []
    resources = Resources()
    resources.feed(text)
    for address in resources.loaded:
        url = urlsplit(address)
        if url.scheme == "data":
            continue
        if url.scheme or url.netloc:
            faults.append(f"loads from the network: {address[:100]}")
        elif url.path and not (page.parent / unquote(url.path)).exists():
            faults.append(f"missing resource: {address[:100]}")
    faults += [f"picture without a text alternative: {source}" for source in resources.silent]
    faults += ["holds an ipywidget, which is dead without a kernel"] * ("widget-view+json" in text)
    faults += [
        f"unresolved number in the prose: {match}"
        for match in re.findall(r"glue:text[^<]{0,40}", text)
    ]
    return faults


def main(folder: str) -> int:
    """Check all chapters below a folder."""
    pages = sorted(Path(folder, "book").rglob("*.html"))
    faults = [f"{page.name}: {problem}" for page in pages for problem in problems(page)]
    for line in faults:
        print(line, file=sys.stderr)
    if not pages:
        print(f"no pages in {folder}", file=sys.stderr)
    return bool(faults) or not pages


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
