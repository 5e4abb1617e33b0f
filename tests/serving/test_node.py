"""What keeps machines from becoming a mesh: each is told in one sentence, before anything is started."""

from __future__ import annotations

from ipaddress import IPv4Address
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import SecretStr, ValidationError

from dapps.packages import registry
from serving.cli.node import HEAD
from serving.cluster import network, ray_environment
from serving.cluster.node import Node
from serving.config.settings import Settings
from serving.errors import StartError
from serving.replica.deployment import load_dapp
from serving.replica.spec import fingerprint
from tests.conftest import free_ports

HERE = IPv4Address("10.0.0.5")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "set LEBEN_STORE_URL and LEBEN_LEDGER_URL, or leave out --listen"),
        ({"store_url": "redis://store/0"}, "set LEBEN_LEDGER_URL, or"),
        ({"ledger_url": "postgresql+psycopg://db/leben"}, "set LEBEN_STORE_URL, or"),
        ({"store_url": "redis://localhost/0", "ledger_url": "x"}, "names this machine alone"),
        ({"store_url": "rediss://u:p@127.0.0.9:6379/0", "ledger_url": "x"}, "names this machine alone"),
        ({"store_url": "unix:///run/valkey.sock", "ledger_url": "x"}, "names this machine alone"),
    ],
)
def test_a_mesh_whose_store_others_cannot_reach_lets_none_join(settings: dict[str, Any], message: str) -> None:
    secret = {name: SecretStr(value) for name, value in settings.items()}
    network.check_reach(Settings(**secret))  # alone, any will do
    with pytest.raises(StartError, match=message):
        network.check_reach(Settings(listen=HERE, **secret))
    reached = {"store_url": SecretStr("redis://10.0.0.9:6379/0"), "ledger_url": SecretStr("sqlite:////var/ledger.db")}
    network.check_reach(Settings(listen=HERE, **reached))


@pytest.mark.parametrize("address", ["0.0.0.0", "224.0.0.1", "127.0.0.2", "node.example", "::1"])  # noqa: S104
def test_a_node_listens_on_one_address_of_its_own(address: str) -> None:
    with pytest.raises(ValidationError):
        Settings.model_validate({"listen": address})


@pytest.mark.parametrize("label", [{"room": "c t"}, {"": "ct"}, {"room": "in(a,b)"}, {"-room": "ct"}, {"a/b/c": "ct"}])
def test_labels_are_such_as_ray_takes(label: dict[str, str]) -> None:
    with pytest.raises(ValidationError):
        Settings(labels=label)
    assert Settings(labels={"example.org/room": "ct_2"}).labels


def test_only_a_mesh_that_others_join_is_open() -> None:
    alone, among = Settings(port=9000), Settings(port=9000, listen=HERE)
    assert (alone.bind, alone.url, alone.clustered) == ("127.0.0.1", "http://127.0.0.1:9000", False)
    assert (among.bind, among.url, among.clustered) == ("0.0.0.0", "http://10.0.0.5:9000", True)  # noqa: S104
    assert "RAY_GCS_SERVER_PORT" not in ray_environment.environment(alone)
    assert ray_environment.environment(among)["RAY_GCS_SERVER_PORT"] == "9006"


def test_a_machine_that_cannot_join_is_told_why(tmp_path: Path) -> None:
    with pytest.raises(StartError, match="is this machine: a node joins from another one"):
        Node(Settings(data=tmp_path), "127.0.0.1").start()
    with pytest.raises(StartError, match=r"--join nowhere\.invalid: "):
        Node(Settings(data=tmp_path), "nowhere.invalid")
    node = Node(Settings(data=tmp_path, port=free_ports(), listen=HERE), "10.0.0.4")
    with pytest.raises(StartError, match=r"copy keys/ray\.token from the head's data folder to"):
        node.start()
    node.stop()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lock"]


@pytest.mark.parametrize("raw", ["", "10.0.0.4:87", "https://10.0.0.4", "10.0.0.4:8700:1", "a b", "redis://h:8700"])
def test_the_head_is_a_host_and_perhaps_a_port(raw: str) -> None:
    assert HEAD.fullmatch(raw) is None
    for head in ("10.0.0.4", "head.example:8700", "http://head:8700/"):
        assert HEAD.fullmatch(head)


def test_a_replica_starts_only_on_a_node_that_has_what_the_head_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LEBEN_DATA", str(tmp_path / "data"))
    spec: Any = SimpleNamespace(dapp="chdr", package="", isolation=None, fingerprint=fingerprint(registry.load("chdr")))
    assert load_dapp(spec).version == spec.fingerprint[0]
    spec.fingerprint = (*spec.fingerprint[:2], "00" * 32)
    with pytest.raises(StartError, match="has another chdr than the head: install the same package there"):
        load_dapp(spec)
    spec.package = "chdr_dapp/2.0-ab"
    with pytest.raises(StartError, match=r"has no .*/data-packages/chdr_dapp/2\.0-ab: copy it"):
        load_dapp(spec)
