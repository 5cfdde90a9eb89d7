"""Chromium without a window, for programs that look at the admin site as a person does. It is Debian's Chromium."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from selenium import webdriver
from selenium.webdriver.chrome.service import Service

BINARY, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
WANTED: Final = "requires a browser: apt-get install chromium chromium-driver (Debian)"
LAPTOP: Final = {"width": 1280, "height": 800, "deviceScaleFactor": 1, "mobile": False}
PHONE: Final = {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True}
_FLAGS: Final = (
    "--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars",
)  # fmt: skip


def is_there() -> bool:
    """Return whether Chromium and its driver are installed."""
    return bool(BINARY and DRIVER)


@contextmanager
def started() -> Iterator[tuple[webdriver.Chrome, Path]]:
    """Run Chromium. Yield its driver, and the folder for its downloads.

    Chromium and the folder are removed after the block.
    """
    with tempfile.TemporaryDirectory(prefix="nexmdm-") as folder:
        options = webdriver.ChromeOptions()
        assert BINARY is not None
        options.binary_location = BINARY
        for flag in (*_FLAGS, f"--user-data-dir={folder}/profile"):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        driver = webdriver.Chrome(options, Service(DRIVER))
        try:
            downloads = Path(folder) / "downloads"
            driver.execute_cdp_cmd("Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(downloads)})
            yield driver, downloads
        finally:
            driver.quit()
