"""Headless Chromium for tests of pages: Debian's browser, driven by Playwright; skips where either is absent."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest


@contextmanager
def page(width: int = 1280, *, offline: bool = False) -> Iterator[Any]:
    """A fresh page with the lists `requests` (addresses) and `complaints` (console errors, uncaught exceptions)."""
    api = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("needs Chromium")
    with api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        try:
            context = chromium.new_context(viewport={"width": width, "height": 900}, offline=offline)
            opened = context.new_page()
            opened.requests, opened.complaints = [], []
            opened.on("request", lambda request: opened.requests.append(request.url))
            opened.on(
                "console",
                lambda line: opened.complaints.append(line.text) if line.type == "error" else None,
            )
            opened.on("pageerror", lambda error: opened.complaints.append(str(error)))
            yield opened
        finally:
            chromium.close()


def serious_findings(opened: Any) -> list[str]:
    """What axe-core calls serious or critical on a page; skips where `axe-core-python` is absent."""
    axe = pytest.importorskip("axe_core_python.sync_playwright", reason="needs axe-core-python")
    return [
        f"{finding['id']}: {finding['nodes'][0]['html'][:200]}"
        for finding in axe.Axe().run(opened)["violations"]
        if finding["impact"] in ("serious", "critical")
    ]
