"""`leben chain withdraw` and `finish`: a payer's way out, as it is typed, against a real node."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from serving.cli.main import main
from tests.channels.chains import ETHER, STRANGER
from tests.channels.conftest import PAYER


def test_a_payer_gets_its_money_back_by_two_commands(
    on_anvil, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    on_anvil.open_channel(100, salt=7)
    for name, signer in {"payer": PAYER, "thief": STRANGER}.items():
        signer.save(tmp_path / name)
    monkeypatch.delenv("LEBEN_RPC_URL", raising=False)

    def leben(step: str, *words: str, who: str = "payer", salt: int = 7, url: str = "") -> tuple[int, str]:
        words = (on_anvil.identity(salt), "--key", str(tmp_path / who), "--rpc", url or on_anvil.host.anvil.url, *words)
        monkeypatch.setattr(sys, "argv", ["leben", "chain", step, *words])
        with pytest.raises(SystemExit) as ended:
            main()
        output = "".join(capsys.readouterr())
        assert not any(signer.secret() in output for signer in (PAYER, STRANGER))
        return int(ended.value.code or 0), output

    for text, (status, output) in {
        "is it the right chain?": leben("withdraw", salt=8),
        "there is no key file": leben("withdraw", who="nobody"),
        "only the channel's payer": leben("withdraw", who="thief"),
        "at most what is unclaimed": leben("withdraw", "--amount", "101"),
        "a whole number of atomic units": leben("withdraw", "--amount", "1.5"),
        "no withdrawal of this channel": leben("finish"),
        "does not name its chain": leben("withdraw", url="http://user:s3cret@127.0.0.1:9/key"),
    }.items():
        assert status == 1 and output.startswith("leben: ") and output.count("\n") == 1 and text in output, (
            text,
            output,
        )
        assert "s3cret" not in output
    on_anvil.host.anvil.ask("anvil_setBalance", PAYER.address, hex(0))
    status, output = leben("withdraw")
    assert (
        status == 1 and output.startswith("leben: ") and output.count("\n") == 1 and "has no money for gas" in output
    ), output
    on_anvil.host.anvil.ask("anvil_setBalance", PAYER.address, hex(ETHER))
    status, output = leben("withdraw", "--amount", "60")
    then = f"leben chain finish {on_anvil.identity(7)} --key {tmp_path / 'payer'} --rpc "
    assert status == 0 and f"in 900 s: {then}" in output, output
    assert "a withdrawal of this channel is pending" in leben("withdraw")[1]
    assert "the withdraw delay has not passed" in leben("finish")[1]
    on_anvil.clock.now_s += 901
    assert leben("finish")[0] == 0 and on_anvil.ledger.wallet(PAYER.address) == 60
    assert leben("withdraw")[0] == 0, "the rest"
    on_anvil.clock.now_s += 901
    assert leben("finish")[0] == 0 and on_anvil.ledger.wallet(PAYER.address) == 100
