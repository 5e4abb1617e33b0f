"""The queues that docs/scale.md counts with: no more comes out than fits in, and more of anything never gives less."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.benchmarks import scale
from tests.benchmarks._queues import Mesh, Station, simulate, stations, through, used

ROOT = Path(__file__).parents[1]
COSTS = json.loads((ROOT / "tests/benchmarks/scale.json").read_text())
PAGE = (ROOT / "docs/scale.md").read_text()
CALLS = 20_000
WAITED_ON = ("HAProxy", "replicas", "Valkey", "devices")


@pytest.mark.parametrize("replicas", [10, 300, 10_000])
@pytest.mark.parametrize("load", [0.3, 0.9, 2.0])
def test_no_more_is_answered_than_the_narrowest_station_takes(replicas: int, load: float) -> None:
    mesh = Mesh(replicas=replicas, channels=100 * replicas, load=load)
    result = simulate(mesh, COSTS, CALLS)
    narrowest = min(stations(mesh, COSTS)[name].capacity for name in WAITED_ON)
    assert 0 <= result.answered <= narrowest * (1 + 1e-6)
    assert result.p50_ms <= result.p99_ms


@pytest.mark.parametrize("knob", ["valkeys", "threads"])
@pytest.mark.parametrize("replicas", [300, 10_000])
def test_twice_as_much_never_gives_less(knob: str, replicas: int) -> None:
    mesh = Mesh(replicas=replicas, valkeys=8, node=40)
    before, after = (
        simulate(variant, COSTS, CALLS) for variant in (mesh, replace(mesh, **{knob: 2 * getattr(mesh, knob)}))
    )
    assert after.answered >= before.answered * 0.999
    assert after.p99_ms <= before.p99_ms * 1.001


def test_the_treasury_keeps_up_with_more_when_there_are_two_or_it_settles_less_often() -> None:
    mesh = Mesh(replicas=100, channels=10_000)
    usual = used(mesh, COSTS)["treasury"]
    assert used(replace(mesh, treasuries=2), COSTS)["treasury"] == pytest.approx(usual / 2)
    assert used(replace(mesh, settle_s=3_600), COSTS)["treasury"] < usual


def test_calls_wait_as_the_theory_of_one_queue_says() -> None:
    dice, rho = np.random.default_rng(7), 0.8
    arrive = np.cumsum(dice.exponential(1 / rho, 200_000))
    waited = through(arrive, np.zeros(len(arrive)), 1.0) - arrive - 1.0
    # Pollaczek and Khinchine, for a service of always the same length.
    assert waited.mean() == pytest.approx(rho / (2 * (1 - rho)), rel=0.05)
    assert waited.min() >= -1e-6


def test_servers_do_not_wait_for_each_other_and_serve_in_order() -> None:
    dice = np.random.default_rng(3)
    arrive, server = np.cumsum(dice.exponential(0.1, 2_000)), np.floor(dice.random(2_000) * 7)
    left = through(arrive, server, 0.5)
    for number in range(7):
        free, mine = 0.0, server == number
        for come, gone in zip(arrive[mine], left[mine], strict=True):
            free = max(free, come) + 0.5
            assert gone == pytest.approx(free)


def test_a_server_that_has_no_time_left_serves_nothing() -> None:
    assert Station(3, 0.001, 1.2).capacity == 0
    result = simulate(Mesh(replicas=10_000, node=1), COSTS | {"replica_check_cpu_us": 1e4}, CALLS)
    assert result.answered == 0


def block(name: str) -> str:
    return PAGE.partition(f"<!-- scale.py: {name} -->\n")[2].partition("<!-- end -->")[0].strip()


def test_the_page_has_a_place_for_each_table_and_shows_the_plot() -> None:
    assert re.findall(r"<!-- scale.py: (\w+) -->", PAGE) == list(scale.BLOCKS)
    assert "](images/scale.png)" in PAGE


@pytest.mark.parametrize("name", ["walls", "call", "measured"])
def test_the_page_says_what_the_figures_are(name: str) -> None:
    assert block(name) == scale.BLOCKS[name](COSTS)


@pytest.mark.parametrize("name", ["growing", "knobs"])
def test_the_page_says_how_busy_each_part_is(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # To simulate takes a minute: those two columns are left out, and the next test looks at their smallest mesh.
    monkeypatch.setattr(scale, "texts", lambda mesh, costs: ("", ""))
    tables = [
        [line.removeprefix("| ").removesuffix(" |").split(" | ") for line in text.splitlines()]
        for text in (block(name), scale.BLOCKS[name](COSTS))
    ]
    simulated = [tables[0][0].index(head) for head in ("answered/s", "p99 ms")]
    for table in tables:
        for row in table[2:]:
            for column in simulated:
                row[column] = ""
    assert tables[0] == tables[1]


def test_the_page_says_what_the_simulation_of_its_smallest_mesh_gives() -> None:
    answered, late = scale.texts(scale.sized(scale.SIZES[0]), COSTS)
    assert block("growing").splitlines()[2].endswith(f" | {answered} | {late} |")
