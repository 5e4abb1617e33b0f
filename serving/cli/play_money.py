"""What demo and command line need of a ledger beyond the mesh's doors: play money, roots, whether it all adds up.

Two kinds with the same verbs; the demo tells no difference. On a chain everything is read from the chain itself, as an
outsider would: nothing is asked of the mesh.
"""

from __future__ import annotations

from typing import Protocol

from channels.evm.chain import Chain
from channels.evm.chain_file import ChainFile
from channels.evm.deploy import faucet, mint
from channels.evm.ledger import EvmLedger
from channels.evm.sender import Sender
from channels.ledger import LedgerChannel, SqlLedger
from channels.protocol import ChannelConfig, Signer
from serving.config import Settings


class DemoLedger(Protocol):
    """Amounts are atomic units."""

    @property
    def kind(self) -> str:
        """`sql` or `evm`."""

    def fund(self, address: str, amount: int) -> None:
        """Makes play money."""

    def wallet(self, address: str) -> int:
        """What an address holds outside channels."""

    def channel(self, name: str, config: ChannelConfig) -> LedgerChannel | None:
        """A channel now."""

    def root(self, epoch: int, receiver: str) -> str | None:
        """The root that was published with an epoch."""

    def earnings(self, owner: str) -> int:
        """What an owner has earned and not taken out."""

    def verify(self) -> None:
        """Raises if the books do not add up."""

    def close(self) -> None:
        """Lets go of it."""


class OnSql:
    """The embedded ledger, in the same database."""

    kind = "sql"

    def __init__(self, settings: Settings) -> None:
        self._ledger = SqlLedger.open(settings.sql_url())
        self.wallet, self.root, self.earnings = self._ledger.wallet, self._ledger.root, self._ledger.earnings
        self.close = self._ledger.close

    def fund(self, address: str, amount: int) -> None:
        """See `DemoLedger`."""
        self._ledger.fund(address, amount)

    def channel(self, name: str, config: ChannelConfig) -> LedgerChannel | None:
        """See `DemoLedger`."""
        return self._ledger.channel(name)

    def verify(self) -> None:
        """See `DemoLedger`."""
        self._ledger.verify()


class OnChain:
    """A dev chain: its token is minted by an account of our own, so that the receiver's is the treasury's alone."""

    kind = "evm"

    def __init__(self, settings: Settings) -> None:
        self._chain = Chain.open(settings.rpc_url.get_secret_value(), ChainFile.read(settings.chain_file))
        self._seen: dict[str, ChannelConfig] = {}
        self._nobody = Signer.generate()
        self._ledger = EvmLedger(self._chain, Sender(self._chain, self._nobody), self._seen.get)
        self.wallet, self.root, self.earnings = self._ledger.wallet, self._ledger.root, self._ledger.earnings

    def fund(self, address: str, amount: int) -> None:
        """See `DemoLedger`."""
        mint(self._chain, Sender(self._chain, faucet(self._chain, self._nobody)), address, amount)

    def channel(self, name: str, config: ChannelConfig) -> LedgerChannel | None:
        """See `DemoLedger`."""
        self._seen[name] = config
        return self._ledger.channel(name)

    def verify(self) -> None:
        """The contracts hold what their own events say that they owe, to the unit."""
        ask, escrow, split = self._chain, self._chain.escrow, self._chain.split
        owed = sum(one["args"]["amount"] for one in ask.events(escrow.events.Deposited))
        for gone in (escrow.events.Refunded, escrow.events.WithdrawFinalized, escrow.events.Settled):
            owed -= sum(one["args"]["amount"] for one in ask.events(gone))
        earned = sum(one["args"]["amount"] for one in ask.events(split.events.Credited))
        earned -= sum(one["args"]["amount"] for one in ask.events(split.events.Withdrawn))
        if (self.wallet(escrow.address), self.wallet(split.address)) != (owed, earned):
            raise RuntimeError("the contracts do not hold what they owe")

    def close(self) -> None:
        """Nothing is held open."""


def opened(settings: Settings) -> DemoLedger:
    """The ledger of a mesh that runs on these settings."""
    return OnChain(settings) if settings.ledger == "evm" else OnSql(settings)
