"""Makes the pictures of `docs/operate.md` anew: `make screenshots`.

A mesh under load, its Prometheus, and a headless Chromium that goes in as an operator does. A picture shows no name of
this machine and no path on it. Takes three minutes.
"""

from __future__ import annotations

import json
import tempfile
import threading
import time
from io import BytesIO
from pathlib import Path
from urllib.parse import urlencode

import httpx
from PIL import Image
from rich.console import Console
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from channels.payer import ChannelAuth
from tests.browser import chromium, enter_dashboard, sized
from tests.conftest import RunningMesh, free_ports
from tests.prometheus import prometheus
from tests.test_mesh import samples

IMAGES = Path(__file__).parents[1] / "docs" / "images"
LOAD_S = 110
CALLS = "sum by (dapp, outcome) (rate(ray_leben_calls_total[30s]))"
HOLD = "1000 * histogram_quantile(0.95, sum by (dapp, le) (rate(ray_leben_hold_seconds_bucket[30s])))"
say = Console(stderr=True).print


def main() -> None:
    """Writes every picture."""
    IMAGES.mkdir(exist_ok=True)
    port = free_ports()
    environment = {"RAY_PROMETHEUS_HOST": f"http://127.0.0.1:{port + 9}"}
    with tempfile.TemporaryDirectory(prefix="leben-") as folder:
        home = Path(folder)
        say("starting a mesh …")
        with RunningMesh(home / "data", port, environment=environment) as mesh, prometheus(mesh, home):
            say(f"making calls for {LOAD_S} s …")
            done = threading.Event()
            callers = [threading.Thread(target=_call, args=(mesh, done)) for _ in range(2)]
            for caller in callers:
                caller.start()
            try:
                time.sleep(LOAD_S)
                with chromium() as browser:
                    _metrics(browser, environment["RAY_PROMETHEUS_HOST"])
                    _serve(browser, mesh)
            finally:
                done.set()
                for caller in callers:
                    caller.join()


def _call(mesh: RunningMesh, done: threading.Event) -> None:
    """Pays for calls, one after the other; every fifth is no file that a model could read."""
    bodies = samples()
    with httpx.Client(base_url=mesh.url, auth=ChannelAuth(mesh.payer()), timeout=120) as client:
        number = 0
        while not done.is_set():
            for path, body in bodies.items():
                number += 1
                client.post(path, content=body if number % 5 else b"neither")


def _serve(browser: webdriver.Chrome, mesh: RunningMesh) -> None:
    url = json.loads((mesh.data / "mesh.json").read_text())["dashboard"]
    wait = WebDriverWait(browser, 30)
    sized(browser, 1200, 1000)
    enter_dashboard(browser, url, (mesh.data / "keys" / "ray.token").read_text())
    browser.get(f"{url}/#/serve")
    wait.until(lambda page: page.find_elements(By.LINK_TEXT, "StrokeDr"))
    time.sleep(2)  # what moves comes to rest
    _save("serve-tab", browser.get_screenshot_as_png())
    browser.get(f"{url}/#/serve/applications/chdr/CHDr")
    wait.until(lambda page: page.find_elements(By.XPATH, "//button[text()='View']"))[0].click()
    dialog = wait.until(lambda page: page.find_element(By.CSS_SELECTOR, "[role=dialog]"))
    time.sleep(2)
    _save("serve-config", dialog.screenshot_as_png)


def _metrics(browser: webdriver.Chrome, url: str) -> None:
    shown: dict[str, str] = {}
    for number, query in enumerate((CALLS, HOLD)):
        facts = {"expr": query, "tab": "0", "range_input": "1m", "step_input": "1"}
        shown |= {f"g{number}.{name}": value for name, value in facts.items()}
    sized(browser, 1200, 1560)
    browser.get(f"{url}/graph?{urlencode(shown)}")
    WebDriverWait(browser, 30).until(lambda page: len(page.find_elements(By.CSS_SELECTOR, ".rickshaw_graph svg")) == 2)
    time.sleep(2)
    _save("metrics", browser.get_screenshot_as_png())


def _save(name: str, png: bytes) -> None:
    """With few colours: pages have few, and a file in a repository stays for ever."""
    image = Image.open(BytesIO(png)).convert("RGB").quantize(64, dither=Image.Dither.NONE)
    image.save(IMAGES / f"{name}.png", optimize=True)
    say(f"docs/images/{name}.png, {(IMAGES / f'{name}.png').stat().st_size // 1024} KB")


if __name__ == "__main__":
    main()
