"""Gives the demo and the command line direct access to a ledger: play money, balances, roots, checks.

The SQL ledger and a chain have the same methods. A chain is read as an outsider reads it, without the mesh.
"""

from __future__ import annotations

from typing import Any, Protocol

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
        """The balance of an address outside channels."""

    def channel(self, name: str, config: ChannelConfig) -> LedgerChannel | None:
        """A channel's present state."""

    def root(self, epoch: int, receiver: str) -> str | None:
        """The published root of an epoch."""

    def earnings(self, owner: str) -> int:
        """An owner's earnings that are not withdrawn."""

    def verify(self) -> None:
        """Raises an error unless the books add up."""

    def close(self) -> None:
        """Closes its connections."""


class OnSql:
    """The embedded SQL ledger."""

    kind = "sql"

    def __init__(self, settings: Settings, create: bool = True) -> None:
        self._ledger = SqlLedger.open(settings.sql_url(), create=create)
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
    """A dev chain. A new account mints the token: the receiver's account and its nonces are the treasury's alone."""

    kind = "evm"

    def __init__(self, settings: Settings) -> None:
        from channels.evm.chain import Chain
        from channels.evm.chain_file import ChainFile
        from channels.evm.configs import Configs
        from channels.evm.ledger import EvmLedger
        from channels.evm.sender import Sender

        self._chain = Chain.open(settings.rpc_url.get_secret_value(), ChainFile.read(settings.chain_file))
        self._seen: dict[str, ChannelConfig] = {}
        self._minter = Signer.generate()
        self._ledger = EvmLedger(
            self._chain, Sender(self._chain, self._minter), Configs(self._chain.facts.chain_id, self._seen.get)
        )
        self.wallet, self.root, self.earnings = self._ledger.wallet, self._ledger.root, self._ledger.earnings

    def fund(self, address: str, amount: int) -> None:
        """See `DemoLedger`."""
        from channels.evm.deploy import faucet, mint
        from channels.evm.sender import Sender

        mint(self._chain, Sender(self._chain, faucet(self._chain, self._minter)), address, amount)

    def channel(self, name: str, config: ChannelConfig) -> LedgerChannel | None:
        """See `DemoLedger`."""
        self._seen[name] = config
        return self._ledger.channel(name)

    def verify(self) -> None:
        """Compares the contracts' balances with what their events say they owe."""
        escrow, split = self._chain.escrow, self._chain.split
        owed = self._sum(escrow.events.Deposited)
        owed -= sum(map(self._sum, (escrow.events.Refunded, escrow.events.WithdrawFinalized, escrow.events.Settled)))
        earned = self._sum(split.events.Credited) - self._sum(split.events.Withdrawn)
        if (self.wallet(escrow.address), self.wallet(split.address)) != (owed, earned):
            raise RuntimeError("the contracts do not hold what they owe")

    def _sum(self, event: Any) -> int:
        return sum(row["args"]["amount"] for row in self._chain.events(event))

    def close(self) -> None:
        """Has nothing to close."""


def open_ledger(settings: Settings, create: bool = True) -> DemoLedger:
    """Opens the ledger of a mesh with these settings; `create` makes a missing SQL ledger."""
    return OnChain(settings) if settings.ledger == "evm" else OnSql(settings, create)
