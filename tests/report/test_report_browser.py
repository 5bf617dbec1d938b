"""Test the HTML report in a real browser: what it draws, filters and links, how much it draws, and that it fetches nothing."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.needs import CHROMIUM, DRIVER
from support.stored_runs import comparison, record, write_run

from selfcorrect.report import write_report

pytestmark = [pytest.mark.browser, pytest.mark.slow]
ELEMENTS = 10_000
"""A page with any number of episodes draws its figures and one page of the list."""
COMPARISON = Path(__file__).parents[2] / "results/paper"
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--window-size=1280,900"]  # fmt: skip


class Browser:
    """A headless Chromium with the actions that the tests need."""

    def __init__(self, profile: Path, downloads: Path) -> None:
        from selenium import webdriver
        from selenium.webdriver.chrome.service import Service

        options = webdriver.ChromeOptions()
        options.binary_location = CHROMIUM
        for flag in [*FLAGS, f"--user-data-dir={profile}"]:
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        self.driver = webdriver.Chrome(options=options, service=Service(DRIVER))
        self.driver.set_script_timeout(30)
        self.downloads = downloads
        self.driver.execute_cdp_cmd(
            "Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(downloads)}
        )

    def open(self, page: Path, address: str = "", *, width: int = 1280, dark: bool = False) -> None:
        """Reload the page and wait until it is complete."""
        screen = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
        self.driver.get("about:blank")
        self.driver.get(page.as_uri() + address)
        self.wait("document.documentElement.dataset.ready")

    def js(self, code: str, *arguments: Any) -> Any:
        return self.driver.execute_script(code, *arguments)

    def wait(self, condition: str) -> None:
        done = self.driver.execute_async_script(
            "const done = arguments[0], began = Date.now();"
            f"(function look() {{ if ({condition}) done(true);"
            "else if (Date.now() - began > 20000) done(false); else setTimeout(look, 10); })();"
        )
        assert done, condition

    def texts(self, selector: str) -> list[str]:
        found: list[str] = self.js(
            "return [...document.querySelectorAll(arguments[0])].map((x) => x.textContent.trim())", selector
        )
        return found

    def click(self, selector: str) -> None:
        self.js("document.querySelector(arguments[0]).click()", selector)

    def set(self, name: str, value: str) -> None:
        """Fill in a filter as a user does."""
        self.js(
            "const field = document.querySelector(`#filters [name=${arguments[0]}]`);"
            "field.value = arguments[1]; field.dispatchEvent(new Event('input', {bubbles: true}))",
            name,
            value,
        )

    def found(self) -> int:
        return int(self.texts("#found")[0].split()[0].replace(",", ""))

    def elements(self) -> int:
        """Return the number of elements that the page has drawn."""
        return int(self.js("return document.querySelectorAll('*').length"))

    def complaints(self) -> list[str]:
        return [entry["message"] for entry in self.driver.get_log("browser")]

    def requests(self) -> list[str]:
        """Return the addresses of all requests since the last call."""
        events = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        return [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    made = Browser(tmp_path_factory.mktemp("profile"), tmp_path_factory.mktemp("downloads"))
    yield made
    made.driver.quit()


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    comparison(folder)
    write_report([folder], folder / "report.html")
    return folder / "report.html"


@pytest.mark.parametrize(("width", "dark"), [(390, True), (1280, False)])
def test_every_figure_is_drawn_and_nothing_is_fetched(browser: Browser, page: Path, width: int, dark: bool) -> None:
    browser.requests(), browser.complaints()
    browser.open(page, width=width, dark=dark)
    drawn = browser.js(
        "return Object.fromEntries([...document.querySelectorAll('[data-figure]')].map((f) => [f.dataset.figure,"
        " f.querySelectorAll('.drawing svg :is(path, rect, circle, line)').length]))"
    )
    assert set(drawn) == {"attempts", "flips", "edits", "difficulty", "more_attempts", "votes", "curves"}
    assert min(drawn.values()) > 10, drawn
    assert not browser.js("return /NaN|undefined/.test([...document.querySelectorAll('svg')].map((s) => s.outerHTML))")
    assert browser.js("return document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    ground = browser.js("return getComputedStyle(document.body).backgroundColor")
    assert (max(map(int, ground[4:-1].split(","))) < 80) == dark, ground
    assert browser.complaints() == []
    assert {url.partition(":")[0] for url in browser.requests()} <= {"file", "data", "about"}


@pytest.mark.skipif(not COMPARISON.is_dir(), reason="a source distribution has no results/")
def test_the_terms_of_delta_are_stacked_from_zero(browser: Browser, tmp_path: Path) -> None:
    write_report([COMPARISON / "score"], tmp_path / "report.html", episodes=0)
    browser.open(tmp_path / "report.html")
    bars = browser.js(
        "return [...document.querySelectorAll('#figure-made_of .drawing rect')]"
        ".map((r) => [+r.getAttribute('x'), +r.getAttribute('width')])"
    )
    (left, lost), (right, gained) = bars[-2:]  # SCoRe: re-answering -19.65, reading +46.6
    assert lost / gained == pytest.approx(19.65 / 46.6, rel=0.01)
    assert left + lost == pytest.approx(right, abs=1.1), "both begin at 0"


def test_bars_are_as_long_as_their_numbers(browser: Browser, page: Path) -> None:
    browser.open(page)
    widths = browser.js(
        "return [...document.querySelectorAll('#figure-flips .drawing rect')].map((r) => +r.getAttribute('width'))"
    )
    # i->c and then c->i of base, score after Stage I, score, no-bonus: 10, 20, 30, 15 and 20, 10, 10, 0 % of the problems
    assert [round(100 * w / widths[0]) for w in widths] == [100, 200, 300, 150, 200, 100, 100, 0]


def test_marks_and_text_stand_out_from_the_ground(browser: Browser, page: Path) -> None:
    """WCAG 2.2: text 4.5 : 1 (ours 7 for running text), graphical marks 3 : 1; computed from the colours in use."""
    for dark in (False, True):
        browser.open(page, dark=dark)
        names = [
            "--panel",
            "--ground",
            "--text",
            "--soft",
            "--good",
            "--bad",
            "--accent",
            "--edge",
            "--good-ground",
            "--bad-ground",
            *(f"--c{n}" for n in range(9)),
        ]
        styles = browser.js(
            "const s = getComputedStyle(document.documentElement);"
            "return Object.fromEntries(arguments[0].map((n) => [n, s.getPropertyValue(n).trim()]))", names
        )  # fmt: skip
        for ground in ("--panel", "--ground"):
            for name, least in [("--text", 7), ("--soft", 4.5), ("--accent", 4.5), ("--good", 4.5), ("--bad", 4.5)]:
                assert contrast(styles[name], styles[ground]) >= least, (dark, name, ground)
            for name in [*names[-9:], "--edge"]:
                assert contrast(styles[name], styles[ground]) >= 3, (dark, name, ground)
        for kind in ("--good", "--bad"):  # what an attempt lost or gained, marked in its text
            assert contrast(styles[kind], styles[f"{kind}-ground"]) >= 4.5, (dark, kind)


def contrast(one: str, other: str) -> float:
    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_filters_choose_episodes(browser: Browser, page: Path) -> None:
    browser.open(page)
    # Runs have 20 episodes a model: "score" has 3 seeds x 2 models, "no-bonus" 2 seeds, the base is there once.
    assert browser.found() == 20 * (6 + 2 + 1)
    browser.set("method", "score")
    assert browser.found() == 120
    browser.set("model", "score")
    browser.set("seed", "2")
    assert browser.found() == 20
    browser.click('[data-flip="c2i"]')  # seed 2 breaks 2 of 10
    assert browser.found() == 4
    assert set(browser.texts("#list .mark")) == {"✓ → ✗"} and len(browser.texts("#list li")) == 4
    browser.set("q", "PROBLEM 13:")
    assert browser.found() == 1
    browser.set("q", "nowhere")
    assert browser.found() == 0 and browser.texts("#list li") == []


def test_an_episode_opens_with_the_difference_marked_and_its_address_leads_back(browser: Browser, page: Path) -> None:
    browser.open(page)
    browser.set("method", "score")
    browser.set("model", "score")
    browser.set("seed", "1")
    browser.click('[data-flip="i2c"]')
    browser.click("#list li:nth-child(2) button")
    opened = browser.texts("#episode")[0]
    assert "problem 1: 3+4=" in opened and "corrected" in opened
    assert browser.texts("#episode .turn .verdict") == ["✗ incorrect", "✓ correct"]
    assert browser.texts("#episode del") == ["6"] and browser.texts("#episode ins") == ["7"]
    address = browser.js("return location.hash")
    browser.open(page, address)
    assert browser.texts("#episode")[0] == opened
    assert browser.js("return document.querySelector('#filters [name=seed]').value") == "1"
    top, bottom = browser.js(
        "const r = document.getElementById('episode').getBoundingClientRect(); return [r.top, r.bottom]"
    )
    assert top < 900 and bottom > 0, "the episode is on the screen"
    assert (
        browser.js("return document.querySelector('#list [aria-current=true] .text').textContent") == "problem 1: 3+4="
    )
    browser.js(
        "const b = [...document.querySelectorAll('#episode button')].find((b) => b.textContent === 'Next'); b.focus(); b.click()"
    )
    assert "problem 2: 3+4=" in browser.texts("#episode")[0]
    assert browser.js("return document.activeElement.textContent") == "Next", "a keyboard user can continue"
    browser.open(page, "#episodes?episode=score|1|nothing")
    assert "does not contain the episode in the address" in browser.texts("#found")[0] and browser.complaints() == []


def test_programs_stand_side_by_side_with_each_tests_outcome(browser: Browser, tmp_path: Path) -> None:
    programs = ["def f(x): return x + 2", "def f(x): return x * 2"]
    episode = record(0, [f"```python\n{program}\n```" for program in programs])
    outcomes = [("passed", "failed"), ("passed", "passed")]
    for turn, program, (one, two) in zip(episode["turns"], programs, outcomes, strict=True):
        checks = [("f(2) == 4", one, ""), ("f(3) == 6", two, "AssertionError" if two == "failed" else "")]
        turn["checks"] = [dict(zip(("label", "outcome", "detail"), check, strict=True)) for check in checks]
        turn |= {"extracted": program, "verdict": "right" if two == "passed" else "out_of_memory"}
    write_run(tmp_path / "run", seed=0, models={"score": [episode]})
    write_report([tmp_path], tmp_path / "r.html")
    browser.open(tmp_path / "r.html")
    assert browser.texts("#episode h4 .verdict") == ["✗ out of memory", "✓ correct"]
    assert browser.texts("#episode del") == ["+"] and browser.texts("#episode ins") == ["*"]
    assert browser.js("return [...document.querySelectorAll('#episode pre')].map((e) => e.textContent)") == programs
    assert browser.texts("#episode .checks summary") == ["Tests: 1 passed, 1 failed", "Tests: 2 passed"]
    seen = browser.texts("#episode .checks li")
    assert seen[:2] == ["✓ passedf(2) == 4", "✗ failedf(3) == 6AssertionError"]
    assert seen[2:] == ["✓ passedf(2) == 4", "✓ passedf(3) == 6"] and browser.complaints() == []


@pytest.mark.parametrize(
    ("joint", "same"),
    [("", False), (" ", False), ("\n", False), (" ", True)],
    ids=["letters", "words", "lines", "alike"],
)
def test_long_texts_open_at_once(browser: Browser, tmp_path: Path, joint: str, same: bool) -> None:
    """Texts that differ everywhere get no marks, which would take hours to find; long texts with one difference get them."""
    digits = random.Random(0).choices("0123456789", k=40_000)
    before = joint.join(digits)
    after = before.replace(digits[0], "x", 1) if same else joint.join(reversed(digits))
    write_run(tmp_path / "run", seed=0, models={"score": [record(0, (before, after))]})
    write_report([tmp_path], tmp_path / "r.html")
    browser.open(tmp_path / "r.html")
    assert browser.texts("#episode .turn .text")[1].split() == after.split()
    assert browser.texts("#episode ins") == (["x"] if same else []) and browser.complaints() == []


def test_what_a_model_wrote_is_shown_and_not_run(browser: Browser, tmp_path: Path) -> None:
    evil = "<img src=x onerror=\"document.title='run'\"><b>bold</b>"
    write_run(tmp_path / "run", seed=0, models={"score": [record(0, (evil, "7"), prompt=evil)]})
    write_report([tmp_path], tmp_path / "r.html")
    browser.open(tmp_path / "r.html")
    assert evil in browser.texts("#episode")[0] and evil in browser.texts("#list")[0]
    assert browser.js("return document.querySelectorAll('main img, main b').length") == 0
    assert browser.js("return document.title") != "run" and browser.complaints() == []


def test_data_can_be_read_and_saved(browser: Browser, page: Path) -> None:
    browser.open(page)
    browser.js("document.querySelector('#figure-flips details.values').open = true")
    browser.wait("document.querySelector('#figure-flips details.values td')")
    assert browser.texts("#figure-flips details.values th")[:3] == ["label", "series", "final"]
    for selector, name in (("#figure-flips .csv", "flips"), ("#table-greedy .csv", "table-greedy")):
        browser.click(selector)
        file = browser.downloads / f"{name}.csv"
        for _ in range(500):
            if file.exists() and file.stat().st_size:
                break
            browser.driver.execute_async_script("setTimeout(arguments[0], 10)")
        lines = file.read_text().splitlines()
        assert len(lines) == 5 and "score" in lines[3], lines
    assert lines[3].startswith("score 3 seeds: 0, 1, 2".replace("score 3", '"score 3'))


def test_methods_can_be_taken_out_of_the_curves_and_the_colours_chosen(browser: Browser, page: Path) -> None:
    browser.open(page)
    lines = "return document.querySelectorAll('#figure-curves .drawing path').length"
    before = browser.js(lines)
    browser.click("#figure-curves .legend button")
    assert browser.js(lines) < before
    browser.js("document.querySelector('#figure-curves .legend button').focus()")
    browser.js("document.activeElement.click()")
    assert browser.js(lines) == before and browser.js("return document.activeElement.tagName") == "BUTTON"
    browser.js("document.activeElement.click()")
    assert browser.js(lines) < before
    assert (
        browser.js("return document.querySelector('#figure-curves .legend button').getAttribute('aria-pressed')")
        == "false"
    )
    for name in ("light", "dark", None):
        browser.click("#theme")
        assert browser.js("return document.documentElement.dataset.theme ?? null") == name


@pytest.mark.nightly
@pytest.mark.skipif(not COMPARISON.is_dir(), reason="the kept comparison is not in this copy of the source")
def test_the_kept_comparison_fits_a_phone_and_draws_one_page_of_its_episodes(browser: Browser, tmp_path: Path) -> None:
    """Open a report of nineteen methods with five seeds each, as users would."""
    done = write_report([COMPARISON], tmp_path / "r.html")
    assert done.runs == 95 and done.episodes > 19_000
    browser.complaints()
    browser.open(done.path, width=390)
    assert browser.js("return document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    assert browser.elements() < ELEMENTS
    assert browser.complaints() == []


@pytest.mark.nightly
def test_no_more_is_drawn_for_twenty_thousand_episodes(browser: Browser, tmp_path: Path) -> None:
    words = "so we add carry the one and then write digits of both sums from right to left again".split()  # noqa: SIM905
    draw = random.Random(0)
    for seed in range(2):
        models = {}
        for model in ("base", "score"):
            texts = [(" ".join(draw.choices(words, k=20)), "7") for _ in range(5000)]
            models[model] = [record(i, pair, model=model) for i, pair in enumerate(texts)]
        write_run(tmp_path / f"runs/big-seed-{seed}", seed=seed, models=models, base_digest=str(seed))
    done = write_report([tmp_path / "runs"], tmp_path / "r.html")
    assert done.episodes == 20_000 and done.path.stat().st_size < 5_000_000
    browser.open(done.path)
    assert browser.found() == 20_000 and browser.elements() < ELEMENTS
    browser.set("q", "problem 4999")
    assert browser.found() == browser.js("return document.querySelector('#list').children.length") == 4
