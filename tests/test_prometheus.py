"""What operators look at, by a real Prometheus on a running mesh: every panel has data, every alert can be raised."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, get_args

import httpx
import pytest
import yaml

from channels.errors import X402
from channels.payer import ChannelAuth
from serving.protocol.refusals import STATUS
from serving.telemetry.calls import Outcome
from serving.telemetry.gpus import READINGS
from tests import prometheus as servers
from tests.conftest import RunningMesh
from tests.prometheus import DEPLOY
from tests.test_docs import raised_codes
from tests.test_mesh import samples

BOARDS = sorted((DEPLOY / "grafana").glob("*.json"))
GPU_ONLY = {"ray_node_gpus_utilization", "ray_node_gram_used", *READINGS}
"""Ray and replicas export these where there is a GPU; without one, a test can only look that they know the names."""
MATCHER = re.compile(r'(\w+)\s*(=~|!~|!=|=)\s*"([^"]*)"')
WITHOUT = "no Prometheus here: apt-get install prometheus runs its tests too"


def panels() -> list[Any]:
    params = []
    for path in BOARDS:
        for panel in json.loads(path.read_text())["panels"]:
            for target in panel["targets"]:
                params.append(pytest.param(target["expr"], id=f"{path.stem}: {panel['title']} {target['refId']}"))
    return params


def alerts() -> list[Any]:
    groups = yaml.safe_load((DEPLOY / "prometheus" / "alerts.yml").read_text())["groups"]
    return [pytest.param(rule, id=rule["alert"]) for group in groups for rule in group["rules"]]


@pytest.fixture(scope="module")
def prometheus(mesh: RunningMesh, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A Prometheus by the configuration that is shipped, while calls are made."""
    needed("prometheus")
    with servers.prometheus(mesh, tmp_path_factory.mktemp("prometheus")) as client:
        _load(mesh, 12.0)
        yield client


def needed(program: str) -> None:
    if shutil.which(program) is None:
        pytest.skip(WITHOUT)


@cache
def words() -> dict[str, set[str]]:
    """What each label can hold; a panel's DApp is chosen by whoever looks at it."""
    codes = set(STATUS) | {f"{X402 if x402 else ''}{code}" for x402, code in raised_codes()}
    chosen = {label: {"$dapp"} for label in ("dapp", "model", "function_name")}
    return {"reason": codes, "code": codes, "outcome": set(get_args(Outcome)), **chosen}


def unknown(expression: str) -> list[str]:
    """Matchers of a query that no word of the code fulfils: such a query is silent for ever, and nobody would know."""
    vocabulary, missing = words(), []
    for label, how, value in MATCHER.findall(expression):
        for word in value.split("|") if how.endswith("~") else [value]:
            pattern = word if how.endswith("~") and not word.startswith("$") else re.escape(word)
            if not any(re.fullmatch(pattern, word) for word in vocabulary.get(label, ())):
                missing.append(f"{label}{how}{word}")
    return missing


def _load(mesh: RunningMesh, seconds: float) -> None:
    with httpx.Client(base_url=mesh.url, auth=ChannelAuth(mesh.payer()), timeout=120) as client:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            for path, body in samples().items():
                assert client.post(path, content=body).status_code == 200
                assert client.post(path, content=b"neither").status_code == 422


def ask(client: httpx.Client, query: str) -> list[Any]:
    answer = client.get("/api/v1/query", params={"query": query}).json()
    assert answer["status"] == "success", answer
    return [row for row in answer["data"]["result"] if row["value"][1] != "NaN"]


@pytest.mark.parametrize("expression", panels())
def test_every_panel_has_data(prometheus: httpx.Client, expression: str) -> None:
    query = expression.replace("$__rate_interval", "60s").replace("$dapp", ".*")
    if names := GPU_ONLY & set(re.findall(r"\w+", expression)):
        source = Path(pytest.importorskip("ray").__file__).parent / "dashboard/modules/reporter/reporter_agent.py"
        assert all(f'"{name.removeprefix("ray_")}"' in source.read_text() for name in names - READINGS.keys())
        ask(prometheus, query)  # it is a query at least
        return
    until = time.monotonic() + 120
    while not (rows := ask(prometheus, query)) and time.monotonic() < until:
        time.sleep(1)
    assert rows, query


@pytest.mark.parametrize("rule", alerts())
def test_every_alert_looks_at_what_the_mesh_tells(prometheus: httpx.Client, rule: dict[str, Any]) -> None:
    names = set(re.findall(r"\bray_leben_\w+", rule["expr"]))
    assert names and rule["annotations"]["action"] and rule["annotations"]["summary"]
    assert [name for name in names if not ask(prometheus, f"count({name})")] == []


@pytest.mark.parametrize("rule", [param for param in alerts() if MATCHER.search(param.values[0]["expr"])])
def test_every_alert_asks_for_labels_that_series_have(prometheus: httpx.Client, rule: dict[str, Any]) -> None:
    # A mesh that works has no full queue: what is asked for by name is asked for by its label alone. What is left out
    # is left out here too: the load has refusals beside those.
    expression = MATCHER.sub(lambda match: match[0] if match[2].startswith("!") else f'{match[1]}!=""', rule["expr"])
    selectors = re.findall(r"ray_\w+{[^}]*}", expression)
    assert selectors and [selector for selector in selectors if not ask(prometheus, f"count({selector})")] == []


def test_every_query_asks_for_words_that_the_code_knows() -> None:
    queries = [param.values[0] for param in panels()] + [param.values[0]["expr"] for param in alerts()]
    assert {label for query in queries for label, _, _ in MATCHER.findall(query)} >= {"reason", "outcome", "dapp"}
    assert [name for query in queries for name in unknown(query)] == []


@pytest.mark.parametrize("wrong", ['reason="queue_ful"', 'reason=~"busy|gone"', 'outcome="fails"', 'reasons="busy"'])
def test_a_word_that_the_code_does_not_know_is_found(wrong: str) -> None:
    assert len(unknown(f"rate(ray_leben_refused_total{{{wrong}}}[5m])")) == 1


def test_rays_dashboard_finds_the_prometheus_that_the_operator_named(
    mesh: RunningMesh, prometheus: httpx.Client
) -> None:
    headers = {"authorization": f"Bearer {(mesh.data / 'keys' / 'ray.token').read_text()}"}
    health = httpx.get(f"http://127.0.0.1:{mesh.port + 3}/api/prometheus_health", headers=headers, timeout=30)
    assert health.status_code == 200 and health.json()["result"] is True, health.text


def test_no_alert_is_raised_by_a_mesh_that_works(prometheus: httpx.Client) -> None:
    groups = prometheus.get("/api/v1/rules").json()["data"]["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    assert {rule["name"] for rule in rules} == {param.id for param in alerts()}
    assert [rule["name"] for rule in rules if rule["health"] != "ok" or rule["state"] == "firing"] == []


def test_promtool_finds_the_rules_right_and_each_raised_by_its_numbers() -> None:
    needed("promtool")
    for words in (["check", "config", "prometheus.yml"], ["test", "rules", "alerts_test.yml"]):
        done = subprocess.run(["promtool", *words], cwd=DEPLOY / "prometheus", capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    tested = yaml.safe_load((DEPLOY / "prometheus" / "alerts_test.yml").read_text())["tests"]
    raised = {row["alertname"] for test in tested for row in test["alert_rule_test"] if row["exp_alerts"]}
    assert raised == {param.id for param in alerts()}


def test_each_figure_of_a_card_has_a_panel() -> None:
    names = set(re.findall(r"\w+", " ".join(param.values[0] for param in panels())))
    assert sorted(READINGS.keys() - names) == []
    gpu_names = {name for name in names if name.startswith(("nv_gpu", "nv_energy"))}
    assert sorted(gpu_names - READINGS.keys()) == []


@pytest.mark.parametrize("path", BOARDS, ids=lambda path: path.stem)
def test_a_dashboard_says_what_each_panel_shows(path: Path) -> None:
    board = json.loads(path.read_text())
    assert board["uid"] == path.stem and board["title"].startswith("Leben: ") and board["panels"]
    ids = [panel["id"] for panel in board["panels"]]
    assert len(set(ids)) == len(ids)
    for panel in board["panels"]:
        assert panel["title"] and panel["description"] and panel["fieldConfig"]["defaults"]["unit"], panel["title"]
