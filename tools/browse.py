"""Open every built page in Chromium without a network.

Reports errors, moves the sliders by keyboard, and takes pictures.

Usage: python tools/browse.py _build/html [folder for screenshots]
"""

import shutil
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright


def visit(page, path: Path, pictures: Path | None) -> list[str]:
    """Return what goes wrong on a page."""
    faults = []
    page.on(
        "console",
        lambda message: message.type == "error" and faults.append(f"console: {message.text[:200]}"),
    )
    page.on("pageerror", lambda error: faults.append(f"script: {str(error)[:200]}"))
    page.on("requestfailed", lambda request: faults.append(f"request failed: {request.url[:120]}"))
    page.goto(path.absolute().as_uri(), wait_until="load")
    page.wait_for_timeout(1500)
    for number, slider in enumerate(page.query_selector_all(".lab-slider input")):
        figure = slider.evaluate_handle(
            "element => element.closest('figure').querySelector('.picture')"
        )
        before = (
            slider.get_attribute("aria-valuetext"),
            figure.evaluate("e => getComputedStyle(e).backgroundPositionY"),
        )
        slider.focus()
        at_end = slider.evaluate("element => element.value === element.max")
        page.keyboard.press("ArrowLeft" if at_end else "ArrowRight")
        after = (
            slider.get_attribute("aria-valuetext"),
            figure.evaluate("e => getComputedStyle(e).backgroundPositionY"),
        )
        if before[0] == after[0] or before[1] == after[1]:
            faults.append(f"slider {number} does not move by keyboard")
    sliders = len(page.query_selector_all(".lab-slider"))
    unset = page.evaluate(
        "document.querySelectorAll('.math').length && !document.querySelector('mjx-container')"
    )
    if unset:
        faults.append("formulas are not typeset")
    print(f"{path.name}: {sliders} sliders, {len(faults)} problems")
    if pictures:
        pictures.mkdir(parents=True, exist_ok=True)
        page.screenshot(path=pictures / f"{path.stem}.png", full_page=True)
    return faults


def main(folder: str, pictures: str | None = None) -> int:
    """Visit all chapters."""
    binary = (
        shutil.which("chromium")
        or shutil.which("chromium-browser")
        or shutil.which("google-chrome")
    )
    if binary is None:
        print("Chromium is not installed", file=sys.stderr)
        return 2
    problems = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=binary, args=["--no-sandbox", "--disable-background-networking"]
        )
        context = browser.new_context(offline=True, viewport={"width": 1280, "height": 900})
        for path in sorted(Path(folder, "book").rglob("*.html")):
            page = context.new_page()
            problems += [
                f"{path.name}: {problem}"
                for problem in visit(page, path, Path(pictures) if pictures else None)
            ]
            page.close()
        browser.close()
    print("\n".join(problems))
    return bool(problems)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
