"""The report in a browser: it loads nothing, fits a phone, and can be read in light and dark."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from forged_records import write
from test_report import SECTIONS, Outline, failed, page_of, run, table4

CHROMIUM = "/usr/bin/chromium"
# nothing but the page is to be loaded; and a browser that talks to its maker would not be quiet
QUIET = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update",
)  # fmt: skip
SIZES = {"phone": (390, 844), "small phone": (360, 640), "desktop": (1440, 900)}

# contrast of each text and each line with the page's ground, the least of each kind first
CONTRASTS = """() => {
  const channel = part => part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4;
  const light = color => {
    const [red, green, blue] = color.match(/[\\d.]+/g).map(Number).map(part => channel(part / 255));
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
  };
  const probe = document.body.appendChild(document.createElement("i"));
  probe.style.color = "var(--rule)";  // lines of the grid, and nothing else
  const faint = getComputedStyle(probe).color;
  probe.remove();
  const ground = light(getComputedStyle(document.body).backgroundColor);
  const contrast = color => {
    const [low, high] = [light(color), ground].sort((a, b) => a - b);
    return (high + 0.05) / (low + 0.05);
  };
  const of = (selector, property) => [...document.querySelectorAll(selector)]
    .map(element => getComputedStyle(element)[property]);
  const found = {
    texts: of("h1, h2, h3, small, p, a:not(.skip), th, td, dt, dd, li, li span, summary", "color"),
    labels: of("svg text", "fill"),
    lines: of("svg path", "stroke").filter(color => color != "none" && color != faint),
    marks: of("svg use", "fill").filter(color => color != "none"),
  };
  return Object.fromEntries(Object.entries(found).map(
    ([name, colors]) => [name, [Math.min(...colors.map(contrast)), colors.length]]));
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium without a window; where it is not installed the tests are skipped."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        playwright_there = False
    else:
        playwright_there = True
    if not (playwright_there and shutil.which(CHROMIUM)):
        message = f"needs the Python package playwright, and {CHROMIUM}"
        if os.environ.get("SPARTA_BENCH_ALL_TOOLS") == "1":
            pytest.fail(message)
        pytest.skip(message)
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=list(QUIET))
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Outline]:
    """A page with every kind of thing on it: wide tables, twins, failed runs, long names."""
    folder = tmp_path_factory.mktemp("report") / "records"
    records = [*table4(), failed("out of memory " * 15, model="gemma-2b-it", task="rte", seed=8)]
    long = "a-model-with-a-name-that-nobody-would-want-to-type-" * 3
    records += [
        run("lora", seed=seed, model=long) | {"method": name}
        for seed, name in enumerate(("sparta_vo", "somebody-elses-method"))
    ]
    records += [run("lora", model="tiny-gemma", task="tiny-cola", seed=seed) for seed in range(3)]
    write(folder, *records)
    text = page_of(folder, "--page-only")
    return folder.with_name("out") / "report.html", Outline(text)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.slow
def test_the_page_in_a_browser(
    browser: Any, report: tuple[Path, Outline], size: str, scheme: str
) -> None:
    path, outline = report
    width, height = SIZES[size]
    context = browser.new_context(
        viewport={"width": width, "height": height}, color_scheme=scheme, offline=True
    )
    page = context.new_page()
    heard: list[str] = []
    requests: list[str] = []
    page.on("console", lambda message: heard.append(message.text))
    page.on("pageerror", lambda error: heard.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    page.goto(path.as_uri())
    page.wait_for_load_state("networkidle")
    assert heard == []
    assert [url for url in requests if url != "data:,"] == [path.as_uri()]

    # first what came out: the first verdict and its picture without scrolling, all else folded
    assert page.locator("details[open]").count() == 0
    assert page.locator(".verdict").first.bounding_box()["y"] < height
    assert page.locator(".card svg").first.bounding_box()["y"] < height
    assert page.evaluate("document.scrollingElement.scrollWidth") <= width
    page.evaluate("document.querySelectorAll('details').forEach(part => part.open = true)")
    assert page.evaluate("document.scrollingElement.scrollWidth") <= width
    # wide tables scroll in their boxes, and no box is wider than the page
    boxes = page.evaluate(
        "[...document.querySelectorAll('.scroll')].map(box => "
        "[box.getBoundingClientRect().right, box.scrollWidth - box.clientWidth])"
    )
    assert all(right <= width for right, _ in boxes)
    assert width > 1000 or max(hidden for _, hidden in boxes) > 0

    for tag in ("table", "figure", "svg", "h2", "details"):
        assert page.locator(tag).count() == outline.tags[tag] > 0
    assert page.locator("h2").all_inner_texts() == list(SECTIONS)
    # every drawing has a size and a text, every link of the contents leads to a heading
    assert page.evaluate(
        "[...document.querySelectorAll('svg')].every(svg => svg.getAttribute('aria-label') "
        "&& svg.getBoundingClientRect().width >= 200 && svg.getBoundingClientRect().height >= 20)"
    )
    assert page.evaluate(
        "[...document.querySelectorAll('nav a')].every(link => "
        "document.getElementById(link.hash.slice(1))?.tagName == 'H2')"
    )
    page.locator("nav a").last.click()
    assert page.evaluate("location.hash") == "#environment"
    assert page.evaluate("scrollY") > 0

    contrasts = page.evaluate(CONTRASTS)
    assert all(count > 0 for _, count in contrasts.values())
    assert contrasts["texts"][0] >= 4.5 and contrasts["labels"][0] >= 4.5
    assert contrasts["lines"][0] >= 3 and contrasts["marks"][0] >= 3
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert ground == {"light": "rgb(253, 253, 252)", "dark": "rgb(20, 23, 26)"}[scheme]
    context.close()


def test_labels_of_drawings_stay_inside(browser: Any, report: tuple[Path, Outline]) -> None:
    page = browser.new_page(viewport={"width": 390, "height": 844})
    page.goto(report[0].as_uri())
    page.evaluate("document.querySelectorAll('details').forEach(part => part.open = true)")
    outside = page.evaluate(
        "[...document.querySelectorAll('svg.chart')].flatMap(svg => {"
        " const frame = svg.getBoundingClientRect();"
        " return [...svg.querySelectorAll('text')].filter(text => {"
        "  const box = text.getBoundingClientRect();"
        "  return box.left < frame.left - 1 || box.right > frame.right + 1"
        "   || box.top < frame.top - 1 || box.bottom > frame.bottom + 1;"
        " }).map(text => text.textContent) })"
    )
    assert outside == []
    page.close()


def test_on_paper_it_is_light_and_whole(browser: Any, report: tuple[Path, Outline]) -> None:
    page = browser.new_page(color_scheme="dark")
    page.goto(report[0].as_uri())
    page.emulate_media(media="print", color_scheme="dark")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.evaluate(CONTRASTS)["texts"][0] >= 4.5
    assert not page.locator("nav").is_visible()
    assert page.evaluate(
        "[...document.querySelectorAll('.scroll')].every("
        "box => getComputedStyle(box).overflowX === 'visible')"
    )
    page.close()
