"""A run with every piece, and a browser that notes what a page does."""

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import documents
import pytest

from mechrl.cache.reader import Cache
from mechrl.cache.storage import manifest_path
from mechrl.cli.train import train as train_command


@pytest.fixture(scope="session")
def whole_run(small_cache: Cache, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a cache, a checkpoint, a verification, a benchmark and attention. Not to be changed."""
    folder = tmp_path_factory.mktemp("run")
    shutil.copy(small_cache.path, folder / "mini.h5")
    shutil.copy(manifest_path(small_cache.path), folder / "mini.h5.json")
    checkpoint = folder / "checkpoint.zip"
    arguments = ["--from-cache", folder / "mini.h5", "--steps", 64, "--picks", 16, "--out", checkpoint, "--json"]
    train_command.main([str(argument) for argument in arguments], standalone_mode=False)
    (folder / "verification.json").write_text(documents.verification(small_cache, checkpoint).model_dump_json())
    (folder / "bench.json").write_text(documents.bench({"cache/mini.h5": small_cache}).model_dump_json())
    (folder / "attention.json").write_text(documents.attention(small_cache).model_dump_json())
    return folder


@dataclass
class Visit:
    """A page in the browser.

    :param errors: what it wrote to the console, and its uncaught errors.
    :param requests: every address that it asked for.
    :param refused: those that it was not let through to, and why.
    """

    page: object
    errors: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")  # no longer: its event loop runs in this thread
def browser():
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        found = None
    if found is None:
        reason = "the report is opened in a browser: apt-get install chromium, pip install playwright"
        pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def visit(browser) -> Iterator:
    """Opens a file: `visit(path, width=1280, media="screen")` gives a `Visit`, its figures drawn."""
    pages = []

    def visit(path: Path, width: int = 1280, media: str = "screen") -> Visit:
        page = browser.new_page(viewport={"width": width, "height": 900})
        pages.append(page)
        found = Visit(page)
        page.on("console", lambda message: found.errors.append(message.text))
        page.on("pageerror", lambda error: found.errors.append(str(error)))
        page.on("request", lambda request: found.requests.append(request.url))
        page.on("requestfailed", lambda request: found.refused.append(f"{request.url} {request.failure}"))
        page.emulate_media(media=media)
        page.goto(path.as_uri())
        page.wait_for_function(
            "[...document.querySelectorAll('.canvas')].every(c => c.querySelector('.main-svg') && c._fullLayout)"
        )
        return found

    yield visit
    for page in pages:
        page.close()
