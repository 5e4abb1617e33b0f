"""Ray's dashboard of a running mesh: what it tells by its interface, and what an operator sees in a real browser."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from dapps.packages import registry
from serving.cluster import data_folder
from serving.config.settings import Settings
from serving.replica import user_config
from tests import browser as browsers
from tests.conftest import RunningMesh


def place(mesh: RunningMesh) -> tuple[str, str]:
    """The dashboard's address, as `leben up` printed it, and the token it asks for."""
    settings = Settings(data=mesh.data)
    facts = data_folder.running(settings)
    assert facts is not None
    urls = re.findall(r"dashboard (http://\S+)", mesh.log.read_text())
    assert urls[-1] == facts["dashboard"] == f"http://127.0.0.1:{mesh.port + 3}"
    return urls[-1], settings.ray_token.read_text()


def test_the_dashboard_tells_each_dapps_version_price_and_page(mesh: RunningMesh) -> None:
    url, token = place(mesh)
    assert httpx.get(f"{url}/api/serve/applications/", timeout=30).status_code == 401
    headers = {"authorization": f"Bearer {token}"}
    applications = httpx.get(f"{url}/api/serve/applications/", headers=headers, timeout=30).json()["applications"]
    assert set(applications) == {"control", "chdr", "strokedr"}
    for name in ("chdr", "strokedr"):
        dapp = registry.load(name)
        (deployment,) = applications[name]["deployments"].values()
        assert deployment["name"] == type(dapp).__name__
        shown = deployment["deployment_config"]["user_config"]
        assert shown["version"] == dapp.version and shown["price"]["per_item"] == dapp.price.per_item
        page = httpx.get(
            mesh.url + applications[name]["route_prefix"] + applications[name]["docs_path"], follow_redirects=True
        )
        assert page.status_code == 200 and page.url.path == shown["docs"] == f"/dapps/{name}"
    assert httpx.get(mesh.url + applications["control"]["docs_path"]).json()["openapi"]
    boards = Settings(data=mesh.data).runtime / "ray" / "session_latest" / "metrics" / "grafana" / "dashboards"
    assert list(boards.glob("serve_*.json")), "what the page says to give to Grafana"


def test_what_is_shown_is_what_is_in_force_and_configures_the_same() -> None:
    dapp = registry.load("chdr")
    shown = user_config.user_config("chdr", dapp.version, user_config.in_force(dapp, {"maximum_batch": 2}))
    taken = user_config.configuration(shown)
    assert taken["price"]["per_item"] == dapp.price.per_item and taken["maximum_batch"] == 2
    assert set(shown) - set(taken) == {"version", "docs"}


def test_the_pictures_of_the_page_are_small() -> None:
    docs = Path(__file__).parents[1] / "docs"
    pictures = sorted((docs / "images").glob("*.png"))
    assert [path.stem for path in pictures if path.stat().st_size > 150_000] == [] != pictures


@pytest.fixture(scope="module")
def browser() -> Iterator[webdriver.Chrome]:
    with browsers.for_tests() as chrome:
        yield chrome


def test_an_operator_sees_the_dapps_in_the_serve_tab(mesh: RunningMesh, browser: webdriver.Chrome) -> None:
    url, token = place(mesh)
    browsers.sized(browser, 1280)
    browsers.enter_dashboard(browser, url, token)
    browser.get(f"{url}/#/serve")
    wait = WebDriverWait(browser, 30)
    for name in ("control", "chdr", "CHDr", "strokedr", "StrokeDr"):
        wait.until(lambda page, name=name: page.find_elements(By.LINK_TEXT, name))
    browser.get(f"{url}/#/serve/applications/chdr/CHDr")
    wait.until(lambda page: page.find_elements(By.XPATH, "//button[text()='View']"))[0].click()

    def configured(page: webdriver.Chrome) -> dict[str, Any] | None:
        """What the dialog shows, once it is drawn whole."""
        text = page.find_element(By.CSS_SELECTOR, "[role=dialog] .MuiCard-root p").text
        shown: dict[str, Any] = yaml.safe_load(text) or {}
        return shown if shown.get("user_config") else None

    config = wait.until(configured)
    assert config["user_config"]["price"]["per_item"] == registry.load("chdr").price.per_item
