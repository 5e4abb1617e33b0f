"""What a chain and its node can do to a mesh that a database cannot: lie, go away, be slow, take blocks back."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from importlib.resources import files
from typing import Any

import pytest
from eth_account import Account
from requests.exceptions import ConnectionError as NoConnection
from vyper import compile_code
from web3.providers.base import JSONBaseProvider

from channels.errors import ChannelError, LedgerError, LedgerUnavailable
from channels.evm.chain import Chain
from channels.evm.chain_file import ChainFile
from channels.evm.configs import Configs
from channels.evm.deploy import bare, genesis_alloc, init
from channels.evm.events import KEPT_BLOCKS
from channels.evm.ledger import EvmLedger, claim_rows
from channels.evm.payer import ChainPayer, config_of
from channels.evm.sender import Patience, Sender
from channels.protocol.digests import SETTLEMENT
from channels.settlement.settler import Settler
from tests.channels.chains import QUICK, RECEIVER_KEY, STRANGER, on
from tests.channels.conftest import MESH, OWNER_A, OWNER_B, PAYER, RECEIVER
from tests.channels.test_chain_treasury import Line

PASSED_ON = "    self._move(msg.sender, to, amount)"
MOVED = "    self.balanceOf[to] += amount\n    log Transfer(sender=sender"
SECRET_URL = "http://user:s3cret@127.0.0.1:9/key"


class Between(JSONBaseProvider):
    """A provider that something happens to on the way; `said` answers, raises, or gives None to let it through."""

    def __init__(self, real: Any, reply: Callable[[str, Any], Any]) -> None:
        super().__init__()
        self.real, self.reply = real, reply
        self.methods: list[str] = []

    def make_request(self, method: Any, params: Any) -> Any:
        self.methods.append(method)
        answer = self.reply(method, params)
        return self.real.make_request(method, params) if answer is None else answer

    def request_func(self, web3: Any, middleware: Any) -> Any:
        # py-evm's provider speaks through middleware of its own.
        inner = self.real.request_func(web3, middleware)

        def ask(method: Any, params: Any) -> Any:
            self.methods.append(method)
            answer = self.reply(method, params)
            return inner(method, params) if answer is None else answer

        return ask


def answering(result: object) -> dict[str, object]:
    return {"jsonrpc": "2.0", "id": 1, "result": result}


@contextlib.contextmanager
def refused(code: str, kind: type[ChannelError] = LedgerError):
    with pytest.raises(kind) as error:
        yield
    assert error.value.code.endswith(code), error.value.code


def through(world: Any, reply: Callable[[str, Any], Any], patience: Patience = QUICK) -> tuple[EvmLedger, Between]:
    """A ledger whose node is reached through something."""
    between = Between(world.host.provider, reply)
    chain = Chain(between, world.facts)
    return EvmLedger(
        chain, Sender(chain, RECEIVER_KEY, patience), Configs(world.chain_id, world.ledger.configs.get), world.clock, 0
    ), between


def gone(method: str, params: Any) -> None:
    raise NoConnection(SECRET_URL)


# -- the wrong chain, the wrong code ------------------------------------------------------------------------------


def test_a_chain_that_is_not_the_one_of_chain_json_is_refused_by_what_differs(on_tester):
    facts = on_tester.facts
    cases: list[tuple[str, dict[str, object]]] = [
        ("chain_mismatch", {"chain_id": 8453}),
        ("chain_mismatch", {"genesis": "0x" + "11" * 32}),
        ("chain_code", {"split": facts.token}),
        ("chain_code", {"token_name": "USDC"}),
        ("chain_code", {"decimals": 18}),
        ("chain_code", {"split": "0x" + "77" * 20}),
    ]
    for code, changes in cases:
        with refused(code, ChannelError), on(on_tester.host, **changes):
            pass


def test_a_node_that_lies_about_its_chain_is_sent_nothing(on_tester):
    on_tester.fund(PAYER.address, 100)
    before = on_tester.holdings()
    ledger, between = through(on_tester, lambda method, _: answering("0x1") if method == "eth_chainId" else None)
    with refused("chain_mismatch", ChannelError):
        ledger.deposit(on_tester.config(), on_tester.authorise(50))
    with refused("chain_mismatch", ChannelError):
        ledger.withdrawing()
    assert "eth_sendRawTransaction" not in between.methods
    assert on_tester.holdings() == before


def test_other_code_at_the_settlement_contracts_address_is_refused(on_anvil):
    ask = on_anvil.host.anvil.ask
    ask("anvil_setCode", SETTLEMENT, ask("eth_getCode", on_anvil.facts.token, "latest"))
    with refused("chain_code", ChannelError):
        on_anvil.chain.check()
    ask("anvil_setCode", SETTLEMENT, "0x")
    with refused("chain_code", ChannelError):
        on_anvil.chain.check()


@pytest.mark.parametrize(
    ("line", "instead", "code"),
    [
        # The escrow sees what it was not given; where the collector is given too little, the token itself gives way.
        pytest.param(PASSED_ON, f"{PASSED_ON}\n    self.balanceOf[to] -= 1", "token_fee", id="when it is passed on"),
        pytest.param(MOVED, MOVED.replace("amount", "amount - 1", 1), "failed", id="at every move"),
    ],
)
def test_a_token_that_keeps_a_part_of_what_is_moved_is_refused_and_moves_nothing(on_anvil, line, instead, code):
    plain = files("channels.evm.contracts").joinpath("DevToken.vy").read_text()
    taking = plain.replace(line, instead)
    assert taking != plain
    on_anvil.fund(PAYER.address, 100)
    placed = compile_code(taking, output_formats=["bytecode_runtime"])["bytecode_runtime"]
    on_anvil.host.anvil.ask("anvil_setCode", on_anvil.facts.token, placed)
    before = on_anvil.holdings()
    with refused(code):
        on_anvil.ledger.deposit(on_anvil.config(), on_anvil.authorise(50))
    assert on_anvil.holdings() == before


def test_a_node_that_takes_too_long_is_unavailable_and_moves_nothing_until_it_is_quick(on_anvil, monkeypatch):
    on_anvil.fund(PAYER.address, 100)
    monkeypatch.setattr("channels.evm.chain.REQUEST_TIMEOUT_S", 0.5)
    line = Line(on_anvil.host.anvil.url)
    try:
        chain = Chain.open(line.url, on_anvil.facts)
        ledger = EvmLedger(
            chain, Sender(chain, RECEIVER_KEY, QUICK), Configs(chain.facts.chain_id), on_anvil.clock, poll_s=0
        )
        line.delay_s = 2.0
        before = on_anvil.holdings()
        with refused("chain_unavailable", LedgerUnavailable):
            ledger.deposit(on_anvil.config(), on_anvil.authorise(50))
        assert on_anvil.holdings() == before
        line.delay_s = 0.0
        moved = ledger.deposit(on_anvil.config(), on_anvil.authorise(50))
        assert moved.channel.balance == 50 and ledger.wallet(PAYER.address) == 50
    finally:
        line.close()


def test_a_chain_is_made_ready_once_and_only_where_that_can_be_done(on_anvil, on_tester, tmp_path):
    again = init(on_anvil.host.provider, RECEIVER_KEY, token=on_anvil.facts.token)
    assert again.token == on_anvil.facts.token and again.split != on_anvil.facts.split
    again.write(tmp_path / "chain.json")
    assert ChainFile.read(tmp_path / "chain.json") == again
    for nothing in (again.split, "0x" + "77" * 20):
        with refused("chain_token", ChannelError):
            init(on_anvil.host.provider, RECEIVER_KEY, token=nothing)
    (tmp_path / "chain.json").write_text('{"chain_id": "1"}')
    with refused("chain_file", ChannelError):
        ChainFile.read(tmp_path / "chain.json")
    empty = Between(on_tester.host.provider, lambda method, _: answering("0x") if method == "eth_getCode" else None)
    with refused("chain_place", ChannelError):
        init(empty, RECEIVER_KEY)  # a node that cannot place code
    assert set(genesis_alloc()) >= {SETTLEMENT} and all(
        account["code"][:2] == "0x" for account in genesis_alloc().values()
    )


def test_a_token_anybody_may_mint_is_never_made_on_a_chain_that_others_use(on_tester):
    """Where x402's own contract stands, its bytecode is another than ours."""
    code = on_tester.chain.web3.eth.get_code(SETTLEMENT).hex()

    def public(method: str, params: Any) -> Any:
        return answering("0x" + code + "00") if method == "eth_getCode" and params[0] == SETTLEMENT else None

    with refused("chain_token", ChannelError):
        init(Between(on_tester.host.provider, public), RECEIVER_KEY)


# -- a node that is away ------------------------------------------------------------------------------------------


def test_while_the_node_is_away_nothing_moves_and_its_address_is_not_told(on_tester):
    on_tester.open_channel(100)
    on_tester.charge(40)
    before = on_tester.holdings()
    ledger, between = through(on_tester, gone)
    row = on_tester.row(40)
    steps: list[Callable[[], Any]] = [
        lambda: ledger.deposit(on_tester.config(1), on_tester.authorise(5, 1)),
        lambda: ledger.claim([row], on_tester.sign_claim(row)),
        lambda: ledger.refund(on_tester.config(), 10, 0, on_tester.sign_refund(10, 0)),
        lambda: ledger.split(1, "0x" + "11" * 32, RECEIVER, []),
        lambda: ledger.earnings(OWNER_A.address),
        lambda: on_tester.settler(ledger).settle(on_tester.token),
    ]
    for step in steps:
        with refused("chain_unavailable", LedgerUnavailable) as error:
            step()
    assert on_tester.holdings() == before and between.methods
    with pytest.raises(LedgerUnavailable) as error:
        steps[0]()
    assert "s3cret" not in str(error.value) and error.value.__cause__ is None
    # When it is back, the same epoch is settled, once.
    assert on_tester.settler().settle(on_tester.token).claimed == 40
    on_tester.verify()


def test_an_answer_that_is_lost_after_the_transaction_was_taken_moves_money_once(on_tester):
    on_tester.fund(PAYER.address, 100)
    authorised, lost = on_tester.authorise(60), []

    def once(method: str, params: Any) -> Any:
        if method == "eth_sendRawTransaction" and not lost:
            lost.append(on_tester.host.provider.make_request(method, params))
            raise NoConnection
        return None

    ledger, _ = through(on_tester, once)
    first = ledger.deposit(on_tester.config(), authorised)
    again = on_tester.ledger.deposit(on_tester.config(), authorised)
    assert lost and first.transaction == again.transaction and again.channel.balance == 60
    assert on_tester.ledger.wallet(PAYER.address) == 40


def test_the_node_is_away_for_a_whole_withdrawal_and_no_more_is_lost_than_was_owed(on_tester):
    on_tester.open_channel(100)
    on_tester.charge(30)
    ledger, _ = through(on_tester, gone)
    settler: Settler = on_tester.settler(ledger)
    on_tester.start_withdraw(100, 0)
    with refused("chain_unavailable", LedgerUnavailable):
        settler.settle(on_tester.token)
    on_tester.clock.now_s += 901
    on_tester.finish_withdraw(1)
    back = on_tester.settler().settle(on_tester.token)
    assert back.epoch is None and back.quarantined == (on_tester.identity(),)
    assert on_tester.ledger.wallet(PAYER.address) == 100 and on_tester.claimed() == 0
    on_tester.verify()


def test_a_withdrawal_that_is_finalized_first_makes_the_claim_fail_and_one_that_comes_second_gets_the_rest(on_tester):
    on_tester.open_channel(100, salt=1)
    on_tester.open_channel(100, salt=2)
    for salt in (1, 2):
        on_tester.start_withdraw(100, 0, salt=salt)
    on_tester.clock.now_s += 901
    late, early = on_tester.row(30, salt=1), on_tester.row(30, salt=2)
    on_tester.finish_withdraw(1, salt=1)
    with refused("cumulative_exceeds_balance"):
        on_tester.ledger.claim([late], on_tester.sign_claim(late))
    assert on_tester.ledger.claim([early], on_tester.sign_claim(early)).moved == (30,)
    on_tester.finish_withdraw(1, salt=2)
    assert on_tester.ledger.wallet(PAYER.address) == 170
    on_tester.verify()


# -- what counts, and epochs on the chain ------------------------------------------------------------------------


def test_a_deposit_counts_when_it_is_deep_enough_and_a_withdrawal_at_once(on_tester):
    on_tester.open_channel(100)
    with on(on_tester.host, confirmations=3) as careful:
        careful.ledger.configs.add(careful.config())
        careful.host.chain.tester.mine_blocks(2)
        assert careful.ledger.channel(careful.identity()).balance == 100
        on_tester.fund(PAYER.address, 50)
        on_tester.ledger.deposit(on_tester.config(), on_tester.authorise(50, once=1))
        assert careful.ledger.channel(careful.identity()).balance == 100
        on_tester.start_withdraw(70, 0)
        assert careful.ledger.channel(careful.identity()).withdraw_amount == 70
        assert [channel.channel_id for channel in careful.ledger.withdrawing()] == [careful.identity()]
        careful.host.chain.tester.mine_blocks(2)
        assert careful.ledger.channel(careful.identity()).balance == 150


def test_a_withdrawal_older_than_what_is_read_at_the_start_is_found_with_its_channel(on_tester):
    on_tester.open_channel(100)
    on_tester.start_withdraw(100, 0)
    on_tester.host.chain.tester.mine_blocks(KEPT_BLOCKS + 2)
    fresh = on_tester.opened()
    assert fresh.withdrawing() == [] == fresh.changed()
    assert fresh.channel(on_tester.identity()).withdraw_amount == 100
    assert [channel.channel_id for channel in fresh.withdrawing()] == [on_tester.identity()]


def test_epochs_are_claimed_split_and_published_and_a_stranger_who_settles_first_changes_nothing(on_tester):
    for salt in range(3):
        on_tester.open_channel(100, salt)
    on_tester.charge(30, 10, salt=0)
    on_tester.charge(25, salt=1)
    on_tester.charge(9, salt=2, signer=MESH)  # its voucher is worth nothing: it must not keep the others unpaid
    real, fronted = on_tester.ledger.claim, []

    def claim(rows: Any, signature: bytes) -> Any:
        done = real(rows, signature)
        stranger = Sender(on_tester.chain, STRANGER, QUICK)
        fronted.append(stranger.send(on_tester.chain.escrow.functions.settle(RECEIVER, on_tester.facts.token)))
        return done

    on_tester.ledger.claim = claim
    done = on_tester.settler().settle(on_tester.token)
    assert (done.claimed, done.quarantined, len(fronted)) == (65, (on_tester.identity(2),), 1)
    assert on_tester.ledger.root(done.epoch, RECEIVER) == done.root
    paid = {owner: on_tester.ledger.earnings(owner) for owner in (OWNER_A.address, OWNER_B.address)}
    assert sum(paid.values()) == 65 == sum(credit.amount for credit in on_tester.ledger.payouts(done.epoch))
    assert on_tester.settler().settle(on_tester.token).epoch is None
    on_tester.verify()


def test_a_payer_that_has_only_its_key_and_a_node_gets_its_money_back(on_tester):
    config = on_tester.open_channel(100, salt=7)
    chain = Chain(on_tester.host.provider, bare(on_tester.host.provider))
    assert config_of(chain, on_tester.identity(7)) == config
    payer, thief = ChainPayer(chain, PAYER, QUICK), ChainPayer(chain, STRANGER, QUICK)
    for code, step in {
        "withdraw_signature": lambda: thief.initiate(config, 100),
        "withdraw_amount": lambda: payer.initiate(config, 101),
        "withdraw_not_pending": lambda: payer.finalize(config),
        "channel_not_found": lambda: config_of(chain, on_tester.identity(8)),
    }.items():
        with refused(code):
            step()
    payer.initiate(config, 100)
    for code, step in {
        "withdraw_pending": lambda: payer.initiate(config, 100),
        "withdraw_too_early": lambda: payer.finalize(config),
        "withdraw_on_chain": lambda: on_tester.ledger.initiate_withdraw(config, 100, 0, b""),
    }.items():
        with refused(code):
            step()
    on_tester.clock.now_s += 901
    payer.finalize(config)
    assert on_tester.ledger.wallet(PAYER.address) == 100


# -- transactions that do not come through ------------------------------------------------------------------------


@pytest.fixture
def manual(on_anvil):
    """A node that makes a block only when it is asked to."""
    on_anvil.open_channel(100)
    on_anvil.host.anvil.ask("evm_setAutomine", False)
    yield on_anvil
    on_anvil.host.anvil.ask("anvil_dropAllTransactions")
    on_anvil.host.anvil.ask("evm_setAutomine", True)


def impatient(world: Any, replace_s: float, give_up_s: float) -> EvmLedger:
    sender = Sender(world.chain, RECEIVER_KEY, Patience(replace_s, give_up_s, 0.01))
    return EvmLedger(world.chain, sender, Configs(world.chain_id, configs=[world.config()]), world.clock, 0)


def pending(world: Any) -> list[Any]:
    """The receiver's transactions that wait for a block."""
    waiting = world.host.anvil.ask("txpool_content")["pending"]
    mine = next((value for key, value in waiting.items() if key.lower() == RECEIVER.lower()), {})
    return [mine[nonce] for nonce in sorted(mine, key=int)]


def test_a_stuck_transaction_is_replaced_for_more_and_only_one_is_ever_mined(manual):
    row, done = manual.row(30), []
    ledger = impatient(manual, 0.3, 80)
    nonce = manual.chain.web3.eth.get_transaction_count(RECEIVER)
    thread = threading.Thread(target=lambda: done.append(ledger.claim([row], manual.sign_claim(row))))
    thread.start()
    fees: set[int] = set()
    until = time.monotonic() + 60
    while len(fees) < 3 and time.monotonic() < until:
        fees |= {int(transaction["maxFeePerGas"], 16) for transaction in pending(manual)}
        assert len(pending(manual)) <= 1
        time.sleep(0.02)
    manual.host.anvil.ask("evm_mine")
    thread.join(90)
    assert done[0].moved == (30,) and len(fees) >= 3
    assert manual.chain.web3.eth.get_transaction_count(RECEIVER) == nonce + 1
    assert manual.ledger.channel(manual.identity()).total_claimed == 30


def test_a_transaction_that_is_not_mined_in_time_is_unknown_and_asked_again_it_is_done_once(manual):
    row = manual.row(30)
    with refused("chain_stuck", LedgerUnavailable):
        impatient(manual, 0.2, 0.5).claim([row], manual.sign_claim(row))
    manual.host.anvil.ask("evm_mine")
    assert manual.ledger.claim([row], manual.sign_claim(row)).moved == (0,)
    assert manual.ledger.channel(manual.identity()).total_claimed == 30


def test_what_an_earlier_process_left_waiting_is_outbid_not_queued_behind(manual):
    web3 = manual.chain.web3
    nonce, gwei = web3.eth.get_transaction_count(RECEIVER), 10**9
    left = {"to": RECEIVER, "value": 0, "gas": 21_000, "nonce": nonce, "chainId": manual.facts.chain_id, "type": 2}
    offer = {"maxFeePerGas": 9 * gwei, "maxPriorityFeePerGas": 5 * gwei}
    signed = Account.from_key(bytes.fromhex(RECEIVER_KEY.secret())).sign_transaction(left | offer)
    web3.eth.send_raw_transaction(signed.raw_transaction)
    row, done = manual.row(30), []
    ledger = impatient(manual, 0.3, 80)
    thread = threading.Thread(target=lambda: done.append(ledger.claim([row], manual.sign_claim(row))))
    thread.start()
    until = time.monotonic() + 60
    while [transaction["hash"] for transaction in pending(manual)] == [
        web3.to_hex(signed.hash)
    ] and time.monotonic() < until:
        time.sleep(0.02)
    manual.host.anvil.ask("evm_mine")
    thread.join(90)
    assert done and done[0].moved == (30,)
    assert web3.eth.get_transaction_count(RECEIVER) == nonce + 1


def test_fees_above_the_cap_and_an_account_without_coin_wait_and_move_nothing(on_anvil):
    on_anvil.open_channel(100)
    row = on_anvil.row(30)
    with on(on_anvil.host, fee_cap=1) as poor:
        poor.ledger.configs.add(poor.config())
        with refused("fee_cap", LedgerUnavailable):
            poor.ledger.claim([row], poor.sign_claim(row))
    on_anvil.host.anvil.ask("anvil_setBalance", RECEIVER, "0x0")
    with pytest.raises(LedgerUnavailable) as error:
        on_anvil.ledger.claim([row], on_anvil.sign_claim(row))
    assert error.value.code == "gas_empty" and RECEIVER in str(error.value)
    assert on_anvil.ledger.channel(on_anvil.identity()).total_claimed == 0


def test_a_batch_that_takes_more_gas_than_is_allowed_is_halved_until_it_fits(on_tester):
    for salt in range(4):
        on_tester.open_channel(100, salt)
        on_tester.charge(10, salt=salt)
    rows = [on_tester.row(10, salt=salt) for salt in range(4)]
    two = on_tester.chain.gas(on_tester.chain.escrow.functions.claim(claim_rows(rows[:2])), MESH.address)
    with on(on_tester.host, claim_gas=two) as narrow:
        ledger = EvmLedger(narrow.chain, narrow.sender, on_tester.ledger.configs, narrow.clock, 0)
        with refused("claim_gas"):
            ledger.simulate_claim(rows)
        ledger.simulate_claim(rows[:2])
        sizes = []
        while (step := on_tester.settler(ledger, rows=2).settle(on_tester.token)).epoch is not None:
            sizes.append((len(step.channels), step.quarantined))
        assert sizes == [(2, ()), (2, ())]


# -- blocks that are taken back -----------------------------------------------------------------------------------


def test_a_reorganisation_that_takes_back_a_deposit_is_told_and_undone(on_anvil):
    on_anvil.open_channel(100)
    on_anvil.ledger.changed()
    on_anvil.fund(PAYER.address, 50)
    on_anvil.host.anvil.ask("evm_mine")
    other = on_anvil.opened()  # another process, which does not send again what it never sent
    other.changed()
    second = on_anvil.ledger.deposit(on_anvil.config(), on_anvil.authorise(50, once=1))
    (channel,) = other.changed()
    assert channel.balance == second.channel.balance == 150
    on_anvil.host.anvil.ask("anvil_reorg", 1, [])
    on_anvil.host.anvil.ask("evm_mine")
    (back,) = other.changed()
    assert back.balance == 100 and back.version > channel.version


def test_a_claim_that_was_taken_back_is_sent_again_and_moves_once(on_anvil):
    on_anvil.open_channel(100)
    on_anvil.ledger.changed()
    row = on_anvil.row(30)
    first = on_anvil.ledger.claim([row], on_anvil.sign_claim(row))
    on_anvil.ledger.changed()
    on_anvil.host.anvil.ask("anvil_reorg", 1, [])
    assert on_anvil.chain.read(on_anvil.chain.escrow.functions.channels(_key(on_anvil)))[1] == 0
    on_anvil.host.anvil.ask("evm_mine")
    (channel,) = on_anvil.ledger.changed()
    assert channel.total_claimed == 30
    again = on_anvil.ledger.claim([row], on_anvil.sign_claim(row))
    assert again.moved == (0,) and again.transaction != "" and first.moved == (30,)
    on_anvil.verify()


def _key(world: Any) -> bytes:
    return bytes.fromhex(world.identity()[2:])
