"""Opens the ledger of a mesh: SQL in its database, or a chain.

The journal is in the database in either case: a chain keeps money, not receipts. Only the treasury's ledger gets the
receiver's key.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field

from pydantic import SecretStr

from channels.evm.chain_file import ChainFile
from channels.journal import Journal
from channels.ledger import Ledger, SqlLedger, Terms
from channels.protocol import ChannelConfig, Signer, channel_id
from serving.config import Settings
from serving.errors import StartError


@dataclass(frozen=True, slots=True)
class ChainSpec:
    """A chain to settle on: its node, its `chain.json`, and the key that pays gas."""

    url: SecretStr
    facts: ChainFile
    receiver_key: SecretStr = field(repr=False)


def opened(
    url: str,
    journal: Journal,
    chain: ChainSpec | None,
    *,
    clock: Callable[[], float] = time.time,
    read_only: bool = False,
) -> Ledger:
    """The treasury's ledger; a chain is checked at the first call, so that its node may be away at the start.

    Args:
        url: of the database.
        journal: has the channels' configs.
        chain: None for the SQL ledger.
        clock: seconds since the epoch.
        read_only: for the SQL ledger: the database refuses every write.
    """
    if chain is None:
        return SqlLedger.open(url, clock, read_only=read_only)

    # web3 takes a second to import, and a mesh on SQL never needs it.
    from channels.evm.chain import Chain
    from channels.evm.configs import Configs
    from channels.evm.ledger import EvmLedger
    from channels.evm.sender import Sender

    def lookup(name: str) -> ChannelConfig | None:
        channel = journal.channel(name)
        return channel.config if channel else None

    configs = [channel.config for channel in journal.channels()]
    node_chain = Chain.later(chain.url.get_secret_value(), chain.facts)
    sender = Sender(node_chain, Signer(bytes.fromhex(chain.receiver_key.get_secret_value())))
    return EvmLedger(node_chain, sender, Configs(chain.facts.chain_id, lookup, configs), clock)


def chain_spec(settings: Settings, receiver: Signer) -> ChainSpec | None:
    """The chain that settings name, or None for the SQL ledger."""
    if settings.ledger == "sql":
        return None
    if not settings.rpc_url.get_secret_value():
        raise StartError("LEBEN_RPC_URL is the URL of a node of the chain; LEBEN_LEDGER=evm needs it")
    return ChainSpec(settings.rpc_url, ChainFile.read(settings.chain_file), SecretStr(receiver.secret()))


def mesh(settings: Settings) -> str:
    """The name by which a store belongs to a mesh: the number drawn when its books were made.

    No key is in it, so keys may be rotated; a backup of the books carries it, on a chain's mesh too.
    """
    with closing(SqlLedger.open(settings.sql_url())) as books:
        return str(books.terms.chain_id)


def terms(settings: Settings, chain: ChainSpec | None) -> Terms:
    """The ledger's terms, after a check that it is there and that this data folder's channels are on it.

    Raises:
        StartError: the channels in the journal are on another ledger.
        ChannelError: the chain is another than `chain.json` names.
        LedgerUnavailable: its node does not answer.
    """
    if chain is None:
        ledger = SqlLedger.open(settings.sql_url())
        ledger_terms = ledger.terms
        ledger.close()
    else:
        from channels.evm.chain import Chain

        Chain.open(chain.url.get_secret_value(), chain.facts)
        ledger_terms = chain.facts.terms
    journal = Journal.open(settings.sql_url())
    try:
        first = next(iter(journal.channels()), None)
    finally:
        journal.close()
    if first is not None and channel_id(ledger_terms.chain_id, first.config) != first.channel_id:
        # What its channels owe could never be claimed here.
        raise StartError("the channels of this data folder are on another ledger: set LEBEN_LEDGER as it was")
    return ledger_terms
