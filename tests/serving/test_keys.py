"""The mesh's keys: from files or the environment, encrypted or not, and an authorizer that is retired."""

from __future__ import annotations

import os
from dataclasses import fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from channels.protocol import keystore
from channels.protocol.keystore import KeyFileError
from channels.protocol.signer import Signer
from dapps.packages import registry
from serving.cli.keys import needed_for
from serving.cluster import data_folder
from serving.config.settings import Settings
from serving.mesh import owners
from serving.replica.spec import ReplicaSpec
from serving.treasury.spec import TreasurySpec
from tests.serving.test_cli import leben

NAMES = ("receiver", "authorizer", "receipt")


def test_keys_come_from_the_environment_before_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    authorizer = Signer.generate()
    monkeypatch.setenv("LEBEN_AUTHORIZER_KEY", authorizer.secret())
    monkeypatch.setenv("leben_key_password", "spelt small")
    settings = Settings(data=tmp_path)
    signers = data_folder.signers(settings)
    assert signers["authorizer"].address == authorizer.address and not (settings.keys / "authorizer.key").exists()
    assert keystore.is_encrypted(settings.keys / "receipt.key")
    assert data_folder.signers(settings)["receipt"].address == signers["receipt"].address
    settings.forget_secrets()
    assert "LEBEN_AUTHORIZER_KEY" not in os.environ and "leben_key_password" not in os.environ
    monkeypatch.setenv("LEBEN_RECEIVER_KEY", authorizer.secret() + "12")
    with pytest.raises(KeyFileError) as caught:
        data_folder.signers(Settings(data=tmp_path))
    assert "LEBEN_RECEIVER_KEY is not a key" in str(caught.value) and authorizer.secret() not in str(caught.value)


def test_no_repr_shows_a_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = Signer.generate().secret()
    hide = {"store_url", "receipt_key", "remote_key"}
    for name in (*(f"{name}_KEY" for name in NAMES), "KEY_PASSWORD", "REMOTE_KEY", "LEDGER_URL", "STORE_URL"):
        monkeypatch.setenv(f"LEBEN_{name}", secret)
    hidden = SecretStr(secret)
    specs: list[Any] = [
        Settings(data=tmp_path),
        TreasurySpec(
            ledger_url=hidden,
            store_url=hidden,
            authorizer_key=hidden,
            receipt_key=hidden,
            exposure_cap=1,
            settle_interval_s=1.0,
            settle_amount=1,
            holder="here",
            retired_keys=(hidden,),
        ),
        ReplicaSpec(**{field.name: hidden if field.name in hide else 1 for field in fields(ReplicaSpec)}),  # type: ignore
        hidden,
    ]
    assert not [spec for spec in specs if secret in f"{spec!r} {spec}"]


def test_owners_are_known_by_address_while_their_keys_are_locked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LEBEN_KEY_PASSWORD", "correct horse")
    locked = owners.shares(Settings(data=tmp_path), "chdr", registry.load("chdr"))
    monkeypatch.delenv("LEBEN_KEY_PASSWORD")
    assert owners.shares(Settings(data=tmp_path), "chdr", registry.load("chdr")) == locked


@pytest.mark.parametrize(
    ("owing", "funded", "day", "need"),
    [
        pytest.param(0, 0, 1, "nothing: it may go", id="emptied"),
        pytest.param(0, 2, 29, "refunds to 2 channels, until 2026-01-31", id="within-30-days"),
        pytest.param(0, 2, 31, "nothing: it may go; 2 payers withdraw without it", id="abandoned"),
        pytest.param(1, 2, 3_000, "claims from 1 channels", id="owes"),
    ],
)
def test_a_retired_key_has_an_end_unless_its_channels_owe(
    tmp_path: Path, owing: int, funded: int, day: int, need: str
) -> None:
    path = tmp_path / "authorizer-20260101-0123abcd.key"
    now_s = datetime(2026, 1, 1, tzinfo=UTC).timestamp() + day * 86_400
    assert needed_for(path, owing, funded, now_s=now_s) == need


def test_a_retired_key_without_a_date_in_its_name_was_not_retired_before_it_was_made(tmp_path: Path) -> None:
    path = tmp_path / "authorizer-0123abcd.key"
    path.write_text("")
    os.utime(path, (0, 0))
    assert data_folder.retired_at_s(path) == path.stat().st_ctime > 0


def test_the_commands_list_encrypt_and_rotate(tmp_path: Path) -> None:
    data = tmp_path / "data"
    settings = Settings(data=data)
    assert "there are no keys" in leben("keys", "list", "--data", str(data)).stderr
    old = {name: signer.address for name, signer in data_folder.signers(settings).items()}
    secrets = [(settings.keys / f"{name}.key").read_text() for name in NAMES]
    password = {"LEBEN_KEY_PASSWORD": "correct horse"}
    assert "set LEBEN_KEY_PASSWORD" in leben("keys", "encrypt", "--data", str(data)).stderr
    lock = data_folder.Lock(settings.home)
    for command in ("encrypt", "rotate"):
        assert "another mesh runs" in leben("keys", command, "--data", str(data), **password).stderr
    lock.release()
    assert leben("keys", "encrypt", "--data", str(data), **password).returncode == 0
    listed = leben("keys", "list", "--data", str(data), COLUMNS="200")
    assert all(address in listed.stdout for address in old.values()) and listed.stdout.count("yes") == 3
    assert leben("keys", "rotate", "--data", str(data), **password).returncode == 0
    opened = Settings(data=data, key_password=SecretStr("correct horse"))
    new = {name: signer.address for name, signer in data_folder.signers(opened).items()}
    assert new["authorizer"] != old["authorizer"] and new["receipt"] == old["receipt"]
    assert [signer.address for signer in data_folder.retired_authorizers(opened)] == [old["authorizer"]]
    (retired,) = settings.keys.glob("authorizer-*.key")
    assert data_folder.RETIRED.fullmatch(retired.name)
    assert "nothing: it may go" in leben("keys", "list", "--data", str(data), **password, COLUMNS="200").stdout
    with pytest.raises(KeyFileError, match="LEBEN_KEY_PASSWORD"):
        data_folder.signers(settings)
    for path in settings.home.rglob("*"):
        assert path.is_dir() or not any(secret in path.read_text() for secret in secrets), path
