"""Reads one EVM chain through its node: blocks, contracts, events, and whether it is the right chain.

`sender.py` sends transactions. A failure of the node becomes `LedgerUnavailable`, a contract's refusal `Reverted`;
neither shows the node's URL, which often holds a key.
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

REQUEST_TIMEOUT_S = 10.0
"""Timeout of one request to the node."""
LOG_BLOCKS = 5_000
"""Blocks that one request for events covers: public nodes refuse more."""
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
    """The chain that `facts` names, read through one node.

    Args:
        provider: the connection to the node.
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
        chain = cls(
            HTTPProvider(url, request_kwargs={"timeout": REQUEST_TIMEOUT_S}, exception_retry_configuration=None), facts
        )
        chain.check()
        return chain

    @classmethod
    def later(cls, url: str, facts: ChainFile) -> Chain:
        """The same, checked when a block is first read, so that a treasury can start while the node is away."""
        chain = cls(
            HTTPProvider(url, request_kwargs={"timeout": REQUEST_TIMEOUT_S}, exception_retry_configuration=None), facts
        )
        chain._unchecked = True
        return chain

    def check(self) -> None:
        """Refuses another chain than `facts` names, and addresses with other contracts.

        Raises:
            ChannelError: names the difference.
            LedgerUnavailable: the node does not answer.
        """
        self.check_id()
        facts = self.facts
        with asking("show the contracts' code"):
            if self.web3.to_hex(self.web3.eth.get_block(0)["hash"]) != facts.genesis:
                raise ChannelError("chain_mismatch", "chain.json names another chain with this id: it began otherwise")
            check_escrow(self.web3, facts.chain_id)
            if self.web3.to_hex(self.web3.eth.get_code(self.split.address)) != built("Split").runtime:
                raise ChannelError("chain_code", f"no Split contract of this version stands at {facts.split}")
            token = [getattr(self.token.functions, name)().call() for name in ("name", "version", "decimals")]
        if token != [facts.token_name, facts.token_version, facts.decimals]:
            raise ChannelError("chain_code", f"the token at {facts.token} calls itself otherwise than chain.json does")

    def check_id(self) -> None:
        """Refuses a node of another chain; called before every transaction."""
        with asking("name its chain"):
            chain_id = self.web3.eth.chain_id
        if chain_id != self.facts.chain_id:
            raise ChannelError(
                "chain_mismatch", f"the node is on chain {chain_id}, chain.json on {self.facts.chain_id}"
            )

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
        """A contract function's result at a block, by default the newest; a refusal raises `Reverted`."""
        with asking("answer a call"):
            return call.call({"from": sender} if sender else {}, block_identifier="latest" if block is None else block)

    def gas(self, call: Any, sender: str) -> int:
        """The gas that a call would take now; a refusal raises `Reverted`."""
        with asking("estimate gas"):
            return int(call.estimate_gas({"from": sender}))

    def gas_raw(self, to: str | None, data: str, sender: str) -> int:
        """The gas that a transaction with `data` would take now."""
        with asking("estimate gas"):
            transaction: Any = {"from": sender, "data": data} | ({"to": to} if to else {})
            return int(self.web3.eth.estimate_gas(transaction))

    def events(self, event: Any, since: int | None = None, upto: int | None = None, **topics: Any) -> list[Event]:
        """A contract's events in order, with `args`, `transactionHash` and `logIndex`; `topics` by indexed name."""
        with asking("list events"):
            last = self.web3.eth.block_number if upto is None else upto
            begins = range(self.facts.from_block if since is None else since, last + 1, LOG_BLOCKS)
            logs: list[Event] = []
            for begin in begins:
                end = min(begin + LOG_BLOCKS - 1, last)
                logs += event.get_logs(from_block=begin, to_block=end, argument_filters=topics)
        return logs

    def _at(self, name: str, address: str) -> Any:
        return self.web3.eth.contract(address=Web3.to_checksum_address(address), abi=built(name).abi)


def check_escrow(web3: Web3, chain_id: int) -> None:
    """Refuses any contract but x402's settlement contract, ours or the original: it must compute our channel ids."""
    code = [web3.eth.get_code(Web3.to_checksum_address(address)) for address in (SETTLEMENT, COLLECTOR)]
    if not all(code):
        raise ChannelError("chain_code", f"no x402 settlement contract stands at {SETTLEMENT}: leben chain init")
    escrow: Any = web3.eth.contract(address=Web3.to_checksum_address(SETTLEMENT), abi=built("ChannelEscrow").abi)
    try:
        identity = "0x" + escrow.functions.getChannelId(config_tuple(PROBE)).call().hex()
    except (ContractLogicError, BadFunctionCallOutput):
        identity = ""
    if identity != channel_id(chain_id, PROBE):
        raise ChannelError("chain_code", f"the contract at {SETTLEMENT} is not x402's settlement contract")


def data_of(call: Any) -> str:
    """A call's data, as a transaction carries it."""
    return str(call._encode_transaction_data())


@contextmanager
def asking(what: str) -> Iterator[None]:
    """Turns errors of a node or a contract into `LedgerUnavailable` or `Reverted`."""
    try:
        yield
    except ContractLogicError as error:
        raise Reverted(revert_name(error.data)) from None
    except (RequestException, Web3Exception, OSError, ValueError) as error:
        # The cause would quote the node's URL.
        kind = type(error).__name__
        raise LedgerUnavailable("chain_unavailable", f"the chain's node does not {what} ({kind}): retry") from None


def revert_name(data: object) -> str:
    """The name of a contract's error by its selector; empty for an unknown one."""
    return SELECTORS.get(data[:10], "") if isinstance(data, str) else ""


def first_with(events: Sequence[Event], **values: Any) -> Event | None:
    """The first event whose arguments have these values."""
    return next(
        (event for event in events if all(event["args"][name] == value for name, value in values.items())), None
    )
