"""Makes key files whole and private; opens them by their password alone; no error quotes one."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import traceback
from pathlib import Path

import pytest
from eth_account import Account

from channels.payer import Wallet
from channels.protocol import keystore
from channels.protocol.keystore import KeyFileError
from channels.protocol.signer import Signer

SECRET = bytes(range(1, 33))


def refused(code: str):
    return pytest.raises(KeyFileError, check=lambda error: error.code == code)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_key_is_made_once_and_is_its_owners_alone(tmp_path: Path) -> None:
    path = tmp_path / "keys" / "new.key"
    old = os.umask(0)
    try:
        first = Signer.from_file(path)
    finally:
        os.umask(old)
    assert Signer.from_file(path).address == first.address
    assert (mode(path), mode(path.parent)) == (0o600, 0o700) and os.listdir(path.parent) == ["new.key"]
    with pytest.raises(FileExistsError):
        Signer.generate().save(path)
    assert Signer.from_file(path).address == first.address


def test_an_encrypted_key_opens_with_its_password_alone(tmp_path: Path) -> None:
    path, signer = tmp_path / "one.key", Signer(SECRET)
    signer.save(path, "correct horse")
    assert mode(path) == 0o600 and SECRET.hex() not in path.read_text() and keystore.is_encrypted(path)
    assert keystore.address(path) == signer.address
    assert Signer.from_file(path, "correct horse").address == signer.address
    for password in ("", "wrong"):
        with refused("key_locked"):
            Signer.from_file(path, password)
    # Any wallet's keystore will do, and any wallet can read ours.
    assert bytes(Account.decrypt(path.read_text(), "correct horse")) == SECRET
    path.write_text(json.dumps(Account.encrypt(SECRET, "another", kdf="pbkdf2", iterations=10)))
    assert Signer.from_file(path, "another").address == signer.address


def test_a_payers_wallet_opens_what_leben_wallet_new_wrote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LEBEN_KEY_PASSWORD", "correct horse")
    path = tmp_path / "payer.key"
    wallet = Wallet.from_file(path)  # as `leben wallet new` does
    assert keystore.is_encrypted(path)
    assert Wallet.from_file(path).address == Signer.from_file(path, "correct horse").address == wallet.address
    monkeypatch.setenv("LEBEN_KEY_PASSWORD", "wrong battery")
    assert Wallet.from_file(path, password="correct horse").address == wallet.address
    with refused("key_locked") as wrong:
        Wallet.from_file(path)
    monkeypatch.delenv("LEBEN_KEY_PASSWORD")
    with refused("key_locked") as missing:
        Wallet.from_file(path)
    assert "set LEBEN_KEY_PASSWORD, or name it in Wallet.from_file(…, password=…)" in str(missing.value)
    text = "".join(traceback.format_exception(wrong.value)) + repr(wallet)
    assert "battery" not in text and wallet.signer.secret() not in text
    plain = tmp_path / "plain.key"
    Signer(SECRET).save(plain)
    assert Wallet.from_file(plain, password="correct horse").address == Signer(SECRET).address


@pytest.mark.parametrize(
    "content",
    [b"", b"not a key", b"12" * 31, b"12" * 33, b"00" * 32, b"ff" * 32, b"\xff\xfe", b"{", b"{}", b'{"address": 5}'],
)
def test_what_is_no_key_is_refused_and_left_as_it_is(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "some.key"
    path.write_bytes(content)
    with refused("key_file"):
        Signer.from_file(path, "password")
    assert path.read_bytes() == content


@pytest.mark.parametrize("content", [SECRET.hex()[:-1], SECRET.hex() + "zz", "0x" + "z" + SECRET.hex()])
def test_no_error_quotes_a_file_and_no_repr_shows_a_key(tmp_path: Path, content: str) -> None:
    path = tmp_path / "nearly.key"
    path.write_text(content)
    with pytest.raises(KeyFileError) as caught:
        Signer.from_file(path)
    text = "".join(traceback.format_exception(caught.value))
    assert SECRET.hex()[:16] not in text
    signer = Signer(SECRET)
    assert SECRET.hex() not in f"{signer!r}{signer}{vars(signer).keys()}"


MAKER = """
import sys
from pathlib import Path
from channels.protocol import Signer
print(Signer.from_file(Path(sys.argv[1])).address)
"""


def test_two_processes_that_make_one_key_have_the_same(tmp_path: Path) -> None:
    words = [sys.executable, "-c", MAKER, str(tmp_path / "shared.key")]
    makers = [subprocess.Popen(words, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    assert len({maker.communicate(timeout=60)[0] for maker in makers}) == 1
    assert os.listdir(tmp_path) == ["shared.key"]
