"""Sends one account's transactions one by one: fees under a cap, replacement of a stuck one, confirmation.

One transaction is under way at a time, always at the account's next nonce on the chain: it replaces whatever an earlier
process left there and never queues behind it, so nothing waits for a transaction that nobody will mine. Every
transaction sent here must be harmless to send twice.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from typing import Any

from eth_account import Account
from web3.exceptions import TransactionNotFound, Web3RPCError, Web3ValueError

from channels.errors import LedgerError, LedgerUnavailable
from channels.evm.chain import Chain, Reverted, asking, data_of
from channels.evm.chain_file import GWEI
from channels.protocol import Signer

MAX_GAS = 16_777_216
"""Of one transaction (EIP-7825)."""
FEW_GWEI = GWEI // 10


@dataclass(frozen=True, slots=True)
class Patience:
    """Seconds until an unmined transaction is sent again with a higher fee, and until its outcome is called unknown."""

    replace_s: float = 20.0
    give_up_s: float = 90.0
    poll_s: float = 0.02


@dataclass(frozen=True, slots=True)
class Offer:
    """The highest fee per gas, and the tip in it for the block's maker; wei."""

    fee: int
    tip: int


class Sender:
    """Sends for one account.

    Args:
        chain: to send to.
        signer: of the account, which pays the gas.
        patience: how long to wait.
    """

    def __init__(self, chain: Chain, signer: Signer, patience: Patience | None = None) -> None:
        self._chain, self._patience = chain, patience or Patience()
        self._account = Account.from_key(bytes.fromhex(signer.secret()))
        self.address = str(signer.address)
        self._lock = threading.Lock()

    def send(self, call: Any) -> Any:
        """Sends a contract call and returns its receipt, confirmed.

        Raises:
            Reverted: the contract refuses; nothing has moved.
            LedgerError: it takes more gas than a transaction may.
            LedgerUnavailable: it may still happen, or the fee is above the cap: ask again.
        """
        return self.send_raw(call.address, data_of(call), self._chain.gas(call, self.address))

    def send_raw(self, to: str | None, data: str, gas: int) -> Any:
        """The same with data; `to` is None for a new contract."""
        if gas > MAX_GAS:
            raise LedgerError("transaction_gas", "the transaction takes more gas than a block has room for")
        limit = min(gas + gas // 4 + 10_000, MAX_GAS)
        with self._lock:
            self._chain.check_id()
            return self._confirmed(self._mined({"data": data, "gas": limit} | ({"to": to} if to else {})))

    def stands(self, name: str) -> bool:
        """True if a transaction is in a block now."""
        return self._find_receipt(name) is not None

    def _mined(self, fields: dict[str, Any]) -> Any:
        """Sends until one of the tries is in a block; all have the same nonce, so at most one is mined."""
        web3 = self._chain.web3
        with asking("count transactions"):
            nonce = web3.eth.get_transaction_count(web3.to_checksum_address(self.address))
        common = fields | {"nonce": nonce, "chainId": self._chain.facts.chain_id, "type": 2, "value": 0}
        give_up, offer = time.monotonic() + self._patience.give_up_s, self._offer()
        hashes: list[str] = []
        while True:
            raised = self._try(common, offer, hashes)
            until = min(time.monotonic() + (0.2 if raised else self._patience.replace_s), give_up)
            receipt = self._receipt(hashes, until)
            if receipt is not None:
                return receipt
            if time.monotonic() >= give_up:
                raise LedgerUnavailable("chain_stuck", "a transaction is not mined in time: ask again")
            offer = self._more(offer)

    def _try(self, common: dict[str, Any], offer: Offer, hashes: list[str]) -> bool:
        """Broadcasts one try; True if the node asks for a higher fee."""
        fees = {"maxFeePerGas": offer.fee, "maxPriorityFeePerGas": offer.tip}
        signed = self._account.sign_transaction(common | fees)
        name = self._chain.web3.to_hex(signed.hash)
        try:
            with asking("take a transaction"):
                try:
                    self._chain.web3.eth.send_raw_transaction(signed.raw_transaction)
                except (Web3RPCError, Web3ValueError) as error:
                    return self._refused(str(error).lower(), hashes, name)
        except LedgerUnavailable as error:
            if error.code != "chain_unavailable":
                raise
            # The connection broke: it may have arrived, so its receipt is waited for like any other.
        hashes.append(name)
        return False

    def _refused(self, message: str, hashes: list[str], name: str) -> bool:
        # JSON-RPC has no codes for these refusals: nodes differ in their words, and these are common to them.
        if "already known" in message or "already imported" in message:
            hashes.append(name)
            return False
        if "underpriced" in message or "fee per gas" in message or "fee too low" in message:
            return True
        if "insufficient funds" in message:
            text = f"the account {self.address} has no money for gas: send it some of the chain's own coin"
            raise LedgerUnavailable("gas_empty", text)
        if "nonce too low" in message:
            if hashes:
                return False
            raise LedgerUnavailable("chain_superseded", "an earlier transaction was mined instead: ask again")
        raise LedgerUnavailable("chain_refused", "the node refuses a transaction: its log says why")

    def _receipt(self, hashes: list[str], until: float) -> Any:
        pause = self._patience.poll_s
        while True:
            for name in hashes:
                receipt = self._find_receipt(name)
                if receipt is not None:
                    return receipt
            if time.monotonic() >= until:
                return None
            time.sleep(min(pause, max(0.0, until - time.monotonic())))
            pause = min(pause * 1.5, 1.0)

    def _find_receipt(self, name: str) -> Any:
        try:
            with asking("show a receipt"):
                try:
                    return self._chain.web3.eth.get_transaction_receipt(name)  # type: ignore[arg-type]
                except TransactionNotFound:
                    return None
        except LedgerUnavailable:
            return None  # a node that is away for a moment has forgotten nothing

    def _confirmed(self, receipt: Any) -> Any:
        """Waits until the block has its confirmations; a block that was taken back may bring it again, or not."""
        name, give_up = self._chain.web3.to_hex(receipt["transactionHash"]), time.monotonic() + self._patience.give_up_s
        deep = self._chain.facts.confirmations - 1
        while deep and self._chain.head().number < receipt["blockNumber"] + deep:
            if time.monotonic() > give_up:
                raise LedgerUnavailable("chain_stuck", "a transaction is not confirmed in time: ask again")
            time.sleep(self._patience.poll_s * 5)
            receipt = self._find_receipt(name)
            if receipt is None:
                raise LedgerUnavailable("chain_reorganised", "the chain took a transaction back: ask again")
        if receipt["status"] != 1:
            raise Reverted("")
        return receipt

    def _offer(self) -> Offer:
        base = self._chain.head().base_fee
        with asking("show the fees of recent blocks"):
            rewards = self._chain.web3.eth.fee_history(4, "latest", [50.0]).get("reward") or []
        tip = max([FEW_GWEI, *(int(row[0]) for row in rewards if row)])
        cap = self._chain.facts.fee_cap
        if base + min(tip, FEW_GWEI) > cap:
            raise LedgerUnavailable("fee_cap", "gas costs more than the fee cap in chain.json now: it is tried again")
        tip = min(tip, cap - base)
        return Offer(min(2 * base + tip, cap), tip)

    def _more(self, offer: Offer) -> Offer:
        """A quarter more of both, which every node accepts as a replacement; at the cap only waiting is left."""
        fresh, cap = self._offer(), self._chain.facts.fee_cap
        fee, tip = max(offer.fee * 5 // 4 + 1, fresh.fee), max(offer.tip * 5 // 4 + 1, fresh.tip)
        return Offer(min(fee, cap), min(tip, fee, cap)) if fee <= cap or offer.fee < cap else offer
