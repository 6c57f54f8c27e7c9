"""The page in a real browser: headless Chromium, where there is one."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.parity.http_server import Server, serving, waited

pytestmark = pytest.mark.server

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
PATIENCE_MS = 60_000


@pytest.fixture(scope="module")
def server(demo_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("page")
    other = folder / "other.bundle"
    other.symlink_to(demo_bundle)
    with serving(demo_bundle, folder, "--model", "demo", "--model", "other", others=[other]) as it:
        yield it


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    sync = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    found = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip("there is no Chromium on PATH")
    with sync.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Any, server: Server) -> Iterator[Any]:
    page = browser.new_page(viewport={"width": 1280, "height": 1000})
    page.set_default_timeout(PATIENCE_MS)
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text) if message.type == "error" else 0)
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto(server.url)
    yield page
    page.close()
    # a refused request shows there too, and is what a test may be about; so does a preview that was
    # asked for when its clip was finished
    assert not [t for t in said if "status of 400" not in t and "status of 409" not in t]


def until(page: Any, script: str) -> None:
    """Polls: the page's own policy forbids evaluating text, as the browser driver's wait does."""
    waited(lambda: page.evaluate(script), script)


def ask(page: Any, prompt: str, seconds: str) -> None:
    page.wait_for_selector("#pipeline option", state="attached")
    page.get_by_label("Prompt").fill(prompt)
    page.get_by_label("Width").fill("64")
    page.get_by_label("Height").fill("64")
    page.get_by_label("Seconds").fill(seconds)


def test_a_clip_is_made_and_plays_while_it_is_decoded(page: Any, tmp_path: Path) -> None:
    picture = tmp_path / "red.png"
    Image.new("RGB", (64, 64), "red").save(picture)
    page.set_input_files("#files", picture)
    ask(page, "a red lake", "5")
    page.get_by_label("Model").select_option("other")
    assert "other, bundle" in page.locator("#model").inner_text()
    page.get_by_role("button", name="Make the clip").click()
    # frames arrive before the clip is finished
    until(page, "document.getElementById('player').readyState >= 2")
    page.wait_for_selector("li[data-status=completed]")
    until(page, "Math.abs(document.getElementById('player').duration - 5.04) < 0.1")
    assert page.evaluate("document.getElementById('player').videoWidth") == 64
    page.locator("summary").first.click()
    assert '"prompt": "a red lake"' in page.locator("li pre").first.inner_text()
    page.reload()
    page.wait_for_selector("li[data-status=completed]")
    assert "other, distilled, seed" in page.locator("li .facts").first.inner_text()


def test_previews_are_seen_until_there_is_something_to_play(page: Any) -> None:
    ask(page, "a lake that is seen early", "2")
    assert page.get_by_label("Show previews").is_checked()
    # which of the two is seen, at every change: a preview may be there for a moment only
    page.evaluate(
        """() => {
            const find = (id) => document.getElementById(id);
            const [preview, player] = [find("preview"), find("player")];
            window.seen = [];
            new MutationObserver(() => window.seen.push([!preview.hidden, !player.hidden]))
                .observe(preview, { attributes: true, attributeFilter: ["hidden"] });
            preview.addEventListener("load", () => window.seen.push(preview.naturalWidth));
        }"""
    )
    page.get_by_role("button", name="Make the clip").click()
    until(page, "window.seen.some((entry) => entry === 8 || entry === 16)")
    page.wait_for_selector("li[data-status=completed]")
    until(page, "document.getElementById('player').readyState >= 2")
    seen = page.evaluate("window.seen")
    assert [True, False] in seen
    assert not page.locator("#preview").is_visible()
    assert page.locator("#player").is_visible()
    page.get_by_label("Pipeline").select_option("text-to-audio")
    assert not page.get_by_label("Show previews").is_visible()


def test_cancel_by_keyboard_after_a_reload_in_mid_run(page: Any, server: Server) -> None:
    ask(page, "a long lake", "20")
    page.get_by_label("Prompt").press("Tab")
    page.get_by_role("button", name="Make the clip").focus()
    page.keyboard.press("Enter")
    page.wait_for_selector("li[data-status=in_progress]")
    page.reload()
    page.wait_for_selector("li[data-status=in_progress]")
    page.get_by_role("button", name="Cancel").first.focus()
    page.keyboard.press("Enter")
    page.wait_for_selector("li[data-status=failed]")
    assert "failed: " in page.locator("li .facts").first.inner_text()
    page.get_by_role("button", name="Delete").first.click()
    until(page, "!document.querySelector('li[data-status=failed]')")


def test_what_is_wrong_is_said(page: Any) -> None:
    ask(page, "a lake", "0.4")
    page.get_by_label("Width").fill("128")
    page.get_by_label("Pipeline").select_option("retake")
    page.get_by_role("button", name="Make the clip").click()
    until(page, "document.getElementById('message').textContent.includes('retake')")
    labels = page.evaluate(
        "[...document.querySelectorAll('input,select,textarea,button,video,progress')]"
        ".filter(e => !e.labels?.length && !e.ariaLabel && !e.textContent.trim()).length"
    )
    assert labels == 0
