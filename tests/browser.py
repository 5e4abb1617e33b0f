"""Drives a headless Chromium for tests and pictures: Debian's `chromium-driver`, through Selenium."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

MISSING = "Chromium is not installed: apt-get install chromium-driver"


@contextmanager
def chromium() -> Iterator[webdriver.Chrome]:
    """A browser for the block.

    Raises:
        FileNotFoundError: there is none on this machine.
    """
    driver = shutil.which("chromedriver")
    if driver is None:
        raise FileNotFoundError(MISSING)
    options = webdriver.ChromeOptions()
    for word in ("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"):
        options.add_argument(word)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = webdriver.Chrome(options, webdriver.ChromeService(driver))
    try:
        yield browser
    finally:
        browser.quit()


@contextmanager
def for_tests() -> Iterator[webdriver.Chrome]:
    """A browser for the block; skips the test where there is none."""
    if shutil.which("chromedriver") is None:
        pytest.skip(MISSING)
    with chromium() as browser:
        yield browser


def sized(browser: webdriver.Chrome, width: int, height: int = 900, mobile: bool = False) -> None:
    """Makes the page's window so many CSS pixels large."""
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": mobile}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)


def enter_dashboard(browser: webdriver.Chrome, url: str, token: str) -> None:
    """Opens Ray's dashboard as an operator does: it asks for the token in a dialog and keeps it in a cookie."""
    browser.get(url)
    field = WebDriverWait(browser, 30).until(lambda page: page.find_element(By.CSS_SELECTOR, "[role=dialog] input"))
    field.send_keys(token, Keys.ENTER)
    WebDriverWait(browser, 30).until_not(lambda page: page.find_elements(By.CSS_SELECTOR, "[role=dialog]"))
