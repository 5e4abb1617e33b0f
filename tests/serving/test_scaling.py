"""How many replicas a DApp has: what an operator may ask for, and what Serve is told."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from serving.config.scale import Scale
from serving.config.settings import Settings
from serving.errors import StartError
from serving.mesh.selection import select_dapps


def test_one_replica_unless_more_are_asked_for() -> None:
    assert Scale().options() == Scale(most=1).options() == {"num_replicas": 1}
    assert Scale(least=3).options() == Scale(least=3, most=3).options() == {"num_replicas": 3}


def test_replicas_between_two_numbers_by_calls_in_flight() -> None:
    config = Scale(least=2, most=5, calls=8, up_s=4, down_s=60).options()["autoscaling_config"]
    assert (config.min_replicas, config.max_replicas, config.target_ongoing_requests) == (2, 5, 8)
    assert (config.upscale_delay_s, config.downscale_delay_s) == (4, 60)
    assert config.metrics_interval_s <= 4 < config.look_back_period_s, "it hears of the calls as soon as it has to act"


def test_settings_read_it_by_dapp(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LEBEN_SCALE", '{"chdr": {"least": 1, "most": 4}}')
    assert Settings(data=tmp_path).scale == {"chdr": Scale(most=4)}
    monkeypatch.setenv("LEBEN_SCALE", '{"nobody": {"most": 4}}')
    with pytest.raises(StartError, match="LEBEN_SCALE names DApps that are not served: nobody"):
        select_dapps(Settings(data=tmp_path))


@pytest.mark.parametrize(
    "wrong", ['{"most": 0.5}', '{"least": 0}', '{"least": 3, "most": 2}', '{"many": 2}', '{"most": 99}']
)
def test_what_cannot_be_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, wrong: str) -> None:
    for raw in (f'{{"chdr": {wrong}}}', wrong[:-1]):
        monkeypatch.setenv("LEBEN_SCALE", raw)
        with pytest.raises(ValidationError, match="scale"):
            Settings(data=tmp_path)
