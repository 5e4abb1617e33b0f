"""`Chain`: one EVM chain through its node: the contracts, what they say at a block, and whether it is the right chain.

Reads only; transactions are sent by `evm_sender.py`. Whatever the node gets wrong ends in `LedgerUnavailable`, a
contract's own refusal in `Reverted`; neither shows the node's URL, which often carries a key. web3 is imported by this
engine alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from requests.exceptions import RequestException
from web3 import HTTPProvider, Web3
from web3.exceptions import BadFunctionCallOutput, ContractLogicError, Web3Exception
from web3.providers.base import JSONBaseProvider

from channels.errors import ChannelError, LedgerUnavailable
from channels.evm.chain_file import ChainFile
from channels.evm.contracts.build import built
from channels.protocol import COLLECTOR, SETTLEMENT, ChannelConfig, channel_id, keccak

ASK_S = 10.0
"""How long one answer of the node is waited for."""
LOG_BLOCKS = 5_000
"""Blocks that one question for events covers: public nodes refuse more."""
ERRORS = (
    "AlreadySpent", "ClaimExceedsBalance", "ClaimExceedsCeiling", "DepositNotReceived", "EmptyBatch", "EpochPublished",
    "Expired", "InvalidAmount", "InvalidChannel", "InvalidCredit", "InvalidNonce", "InvalidSignature",
    "NoWithdrawalPending", "NonceUsed", "NotAuthorizer", "NotEscrow", "NotPayer", "NotReceiver", "NotYetValid",
    "TooEarly", "TransferFailed", "WithdrawDelayOutOfRange", "WithdrawalPending", "ZeroDeposit",
)  # fmt: skip
SELECTORS = {"0x" + keccak(f"{name}()".encode())[:4].hex(): name for name in ERRORS}
PROBE = ChannelConfig("0x" + "11" * 20, "0x" + "22" * 20, "0x" + "33" * 20, "0x" + "44" * 20, "0x" + "55" * 20, 900,
                      "0x" + "66" * 32)  # fmt: skip
Event = dict[str, Any]


class Reverted(Exception):
    """A contract refused; `name` is its error's name, or empty if it gave none. Nothing has moved."""

    def __init__(self, name: str) -> None:
        super().__init__(name or "no reason given")
        self.name = name


@dataclass(frozen=True, slots=True)
class Head:
    """A block: number, hash, time in seconds, fee per gas in wei."""

    number: int
    hash: str
    time_s: int
    base_fee: int


def config_tuple(config: ChannelConfig) -> tuple[Any, ...]:
    """A channel's config as contracts take it."""
    addresses = (config.payer, config.payer_authorizer, config.receiver, config.receiver_authorizer, config.token)
    return (*addresses, config.withdraw_delay, bytes.fromhex(config.salt[2:]))


class Chain:
    """The chain that `facts` names, asked through one node.

    Args:
        provider: the way to the node.
        facts: what `chain.json` says.
    """

    def __init__(self, provider: JSONBaseProvider, facts: ChainFile) -> None:
        self.web3, self.facts = Web3(provider), facts
        self.escrow = self._at("ChannelEscrow", SETTLEMENT)
        self.token = self._at("DevToken", facts.token)
        self.split = self._at("Split", facts.split)
        self._unchecked = False

    @classmethod
    def open(cls, url: str, facts: ChainFile) -> Chain:
        """The chain behind a node's URL, checked."""
        chain = cls(HTTPProvider(url, request_kwargs={"timeout": ASK_S}, exception_retry_configuration=None), facts)
        chain.check()
        return chain

    @classmethod
    def later(cls, url: str, facts: ChainFile) -> Chain:
        """The same, checked at the first look at a block: for who starts while the node is away."""
        chain = cls(HTTPProvider(url, request_kwargs={"timeout": ASK_S}, exception_retry_configuration=None), facts)
        chain._unchecked = True
        return chain

    def check(self) -> None:
        """Refuses another chain than `facts` names, and addresses where something else stands than is named there.

        Raises:
            ChannelError: says what differs.
            LedgerUnavailable: the node does not answer.
        """
        self.check_id()
        facts = self.facts
        with asking("say what stands at the contracts' addresses"):
            if self.web3.to_hex(self.web3.eth.get_block(0)["hash"]) != facts.genesis:
                raise ChannelError("chain_mismatch", "chain.json names another chain with this id: it began otherwise")
            check_escrow(self.web3, facts.chain_id)
            if self.web3.to_hex(self.web3.eth.get_code(self.split.address)) != built("Split").runtime:
                raise ChannelError("chain_code", f"no Split contract of this version stands at {facts.split}")
            said = [getattr(self.token.functions, name)().call() for name in ("name", "version", "decimals")]
        if said != [facts.token_name, facts.token_version, facts.decimals]:
            raise ChannelError("chain_code", f"the token at {facts.token} calls itself otherwise than chain.json does")

    def check_id(self) -> None:
        """Refuses a node of another chain: asked before everything that is sent."""
        with asking("name its chain"):
            found = self.web3.eth.chain_id
        if found != self.facts.chain_id:
            raise ChannelError("chain_mismatch", f"the node is on chain {found}, chain.json on {self.facts.chain_id}")

    def head(self, number: int | None = None) -> Head:
        """The newest block, or the one of a number."""
        if self._unchecked:
            self.check()
            self._unchecked = False
        with asking("show a block"):
            block = self.web3.eth.get_block("latest" if number is None else number)
        base = block.get("baseFeePerGas", 0)
        return Head(block["number"], self.web3.to_hex(block["hash"]), block["timestamp"], int(base))

    def read(self, call: Any, block: int | None = None, sender: str | None = None) -> Any:
        """What a contract's function gives at a block, by default the newest; a refusal raises `Reverted`."""
        with asking("answer a call"):
            return call.call({"from": sender} if sender else {}, block_identifier="latest" if block is None else block)

    def gas(self, call: Any, sender: str) -> int:
        """Gas that a call would take now; a refusal raises `Reverted`."""
        with asking("estimate gas"):
            return int(call.estimate_gas({"from": sender}))

    def gas_raw(self, to: str | None, data: str, sender: str) -> int:
        """The same of data."""
        with asking("estimate gas"):
            what: Any = {"from": sender, "data": data} | ({"to": to} if to else {})
            return int(self.web3.eth.estimate_gas(what))

    def events(self, event: Any, since: int | None = None, upto: int | None = None, **topics: Any) -> list[Event]:
        """A contract's events in order, with `args`, `transactionHash` and `logIndex`; `topics` by indexed name."""
        with asking("list events"):
            last = self.web3.eth.block_number if upto is None else upto
            begins = range(self.facts.from_block if since is None else since, last + 1, LOG_BLOCKS)
            found: list[Event] = []
            for begin in begins:
                end = min(begin + LOG_BLOCKS - 1, last)
                found += event.get_logs(from_block=begin, to_block=end, argument_filters=topics)
        return found

    def _at(self, name: str, address: str) -> Any:
        return self.web3.eth.contract(address=Web3.to_checksum_address(address), abi=built(name).abi)


def check_escrow(web3: Web3, chain_id: int) -> None:
    """Refuses what is not x402's settlement contract, ours or its own: its id of a channel must be ours."""
    code = [web3.eth.get_code(Web3.to_checksum_address(address)) for address in (SETTLEMENT, COLLECTOR)]
    if not all(code):
        raise ChannelError("chain_code", f"no x402 settlement contract stands at {SETTLEMENT}: leben chain init")
    escrow: Any = web3.eth.contract(address=Web3.to_checksum_address(SETTLEMENT), abi=built("ChannelEscrow").abi)
    try:
        found = "0x" + escrow.functions.getChannelId(config_tuple(PROBE)).call().hex()
    except (ContractLogicError, BadFunctionCallOutput):
        found = ""
    if found != channel_id(chain_id, PROBE):
        raise ChannelError("chain_code", f"what stands at {SETTLEMENT} is not x402's settlement contract")


def data_of(call: Any) -> str:
    """A call's data, as a transaction carries it."""
    return str(call._encode_transaction_data())


@contextmanager
def asking(what: str) -> Iterator[None]:
    """Turns what a node or a contract raises into `Reverted` or `LedgerUnavailable`."""
    try:
        yield
    except ContractLogicError as error:
        raise Reverted(revert_name(error.data)) from None
    except (RequestException, Web3Exception, OSError, ValueError) as error:
        # The cause would quote the node's URL.
        kind = type(error).__name__
        raise LedgerUnavailable("chain_unavailable", f"the chain's node does not {what} ({kind}): retry") from None


def revert_name(data: object) -> str:
    """The name of a contract's error by its selector; empty if it has none that we know."""
    return SELECTORS.get(data[:10], "") if isinstance(data, str) else ""


def first_with(events: Sequence[Event], **values: Any) -> Event | None:
    """The first event whose arguments have these values."""
    return next((one for one in events if all(one["args"][name] == value for name, value in values.items())), None)
