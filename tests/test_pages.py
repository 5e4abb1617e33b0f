"""The catalogue of a running mesh: as JSON, as a table, and as pages in a real browser."""

from __future__ import annotations

import html
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.expected_conditions import title_contains
from selenium.webdriver.support.ui import Select, WebDriverWait

from dapps.packages import registry
from tests import browser as browsers
from tests.conftest import RunningMesh

HTML = {"accept": "text/html"}
PHONE, DESK = 360, 1200


def test_the_catalogue_lists_the_served_dapps_with_their_health(mesh: RunningMesh) -> None:
    reply = httpx.get(f"{mesh.url}/v1/dapps").json()
    assert [row["name"] for row in reply["dapps"]] == ["chdr", "strokedr"]
    assert {row["health"]["state"] for row in reply["dapps"]} == {"READY"}
    for row in reply["dapps"]:
        details = httpx.get(f"{mesh.url}/v1/dapps/{row['name']}").json()
        assert details == details | row and details["digest"] == registry.load(row["name"]).digest
        assert details["cards"][0]["name"] and all(share["owner"].startswith("0x") for share in details["shares"])
    absent = httpx.get(f"{mesh.url}/v1/dapps/nobody")
    assert absent.status_code == 404 and absent.json()["code"] == "not_found"
    assert "chdr" in mesh.leben("dapps") and "ready" in mesh.leben("dapps")


def test_the_front_page_is_html_for_a_request_that_accepts_it(mesh: RunningMesh) -> None:
    assert httpx.get(f"{mesh.url}/").json()["links"]["catalogue"] == "/v1/dapps"
    page = httpx.get(f"{mesh.url}/", headers=HTML)
    assert page.headers["content-type"].startswith("text/html") and "accept" in page.headers["vary"]
    assert page.headers["content-security-policy"].startswith("default-src 'none'")
    for path in ("/dapps/nobody", "/dapps/chdr/try", "/dapps/chdr/try?sample=%3Cscript%3E", "/dapps/chdr/picture"):
        answer = httpx.get(mesh.url + path, headers=HTML)
        assert answer.status_code == 404 and answer.json()["code"] == "not_found", path


def test_trying_is_free_and_leaves_no_trace_in_the_books(mesh: RunningMesh) -> None:
    before = mesh.leben("status")
    for name in ("chdr", "strokedr"):
        for sample in registry.load(name).samples():
            answer = httpx.get(f"{mesh.url}/dapps/{name}/try", params={"sample": sample}, timeout=90)
            assert answer.status_code == 200 and "Research use only" in answer.text, (sample, answer.text)
            drawn = httpx.get(f"{mesh.url}/dapps/{name}/picture", params={"sample": sample}, timeout=90)
            # A record alone has no picture.
            assert (drawn.status_code == 200) == ("alone" not in sample) == ("/picture?" in answer.text)
    assert mesh.leben("status") == before


@pytest.mark.parametrize("name", ["chdr", "strokedr"])
def test_the_code_on_the_page_runs_and_pays(mesh: RunningMesh, tmp_path: Path, name: str) -> None:
    page = httpx.get(f"{mesh.url}/dapps/{name}", headers=HTML).text
    curl, program, triton = map(html.unescape, re.findall(r"<pre tabindex=\"0\"><code>(.*?)</code></pre>", page, re.S))
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}

    def run(*command: str) -> str:
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    mesh.leben("wallet", "fund", run("leben", "wallet", "new", "payer.key").strip(), "3000000")
    if shutil.which("curl") is None:
        curl = curl.splitlines()[0]
    reply = run("sh", "-ec", curl)
    assert "402" in reply.splitlines()[0] or shutil.which("curl") is None
    assert re.search(r"charged [1-9]\d*\n", run(sys.executable, "-c", program))
    assert run(sys.executable, "-c", triton).startswith("[[")


@pytest.fixture(scope="module")
def browser() -> Iterator[webdriver.Chrome]:
    with browsers.for_tests() as chrome:
        yield chrome


@pytest.mark.parametrize("width", [PHONE, DESK])
def test_a_person_finds_a_dapp_reads_its_card_and_tries_it(
    mesh: RunningMesh, browser: webdriver.Chrome, width: int
) -> None:
    browsers.sized(browser, width, mobile=width == PHONE)
    browser.get(mesh.url)
    assert browser.find_element(By.TAG_NAME, "h1").text == "What is served here"
    assert_readable(browser, width)
    browser.find_element(By.LINK_TEXT, "StrokeDr.").click()
    WebDriverWait(browser, 30).until(title_contains("StrokeDr."))
    assert browser.find_element(By.TAG_NAME, "h1").text.startswith("StrokeDr.")
    assert len(browser.find_elements(By.CSS_SELECTOR, "svg")) == 10, "two for each of five models"
    assert_readable(browser, width)
    for summary in browser.find_elements(By.TAG_NAME, "summary"):
        summary.click()
    assert "TritonPayment" in browser.find_element(By.ID, "call").text
    assert_readable(browser, width)
    Select(browser.find_element(By.ID, "sample")).select_by_visible_text("head CT slice, with admission")
    browser.find_element(By.CSS_SELECTOR, "form button").click()
    WebDriverWait(browser, 90).until(title_contains("with admission"))
    WebDriverWait(browser, 30).until(lambda page: page.execute_script("return document.readyState") == "complete")
    assert "haemorrhage" in browser.find_element(By.CSS_SELECTOR, "article").text
    picture = browser.find_element(By.CSS_SELECTOR, "img.picture")
    assert browser.execute_script("return arguments[0].naturalWidth", picture) > 200  # type: ignore[no-untyped-call]
    assert_readable(browser, width)
    assert not browser.get_log("browser"), "nothing was blocked, and nothing is missing"  # type: ignore[no-untyped-call]


def assert_readable(browser: webdriver.Chrome, width: int) -> None:
    """The page is no wider than the window, and its text stands out, by day and by night."""
    wide = browser.execute_script("return document.documentElement.scrollWidth")  # type: ignore[no-untyped-call]
    assert wide <= width, f"{browser.current_url} is {wide} wide"
    for scheme in ("light", "dark"):
        media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
        for selector in ("h1", ".quiet", "a.brand", "footer a"):
            for text in browser.find_elements(By.CSS_SELECTOR, selector)[:1]:
                ink, ground = text.value_of_css_property("color"), browser.find_element(By.TAG_NAME, "body")
                assert contrast(ink, ground.value_of_css_property("background-color")) >= 4.5, (scheme, selector)


def contrast(first: str, second: str) -> float:
    """The contrast ratio of the Web Content Accessibility Guidelines."""

    def luminance(colour: str) -> float:
        parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(first), luminance(second)))
    return (high + 0.05) / (low + 0.05)
