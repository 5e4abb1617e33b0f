"""Prepares a chain for a mesh, and lets payers and outsiders use it without the mesh: `leben chain`.

`withdraw`, `finish` and `root` need a node alone: not the mesh, its consent or its files.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import orjson
import typer

from channels.evm.chain import Chain
from channels.evm.configs import Configs
from channels.evm.deploy import bare, genesis_alloc, http, init
from channels.evm.ledger import EvmLedger
from channels.evm.payer import ChainPayer, config_of
from channels.evm.sender import Sender
from channels.protocol import Signer
from serving.cli.arguments import HERE, Data, Id, Key, check_address, check_amount, key_password, read_settings
from serving.cli.console import err, fail
from serving.cluster import data_folder

Rpc = Annotated[str, typer.Option("--rpc", help="URL of a node of the chain.", envvar="LEBEN_RPC_URL")]


def chain_init(
    rpc: Rpc,
    token: Annotated[
        str, typer.Option(help="The token of payment; by default a new dev token, on a private chain alone.")
    ] = "",
    confirmations: Annotated[int, typer.Option(min=1, max=256, help="Blocks until a change is final.")] = 1,
    data: Data = HERE,
) -> None:
    """Deploy the contracts that a mesh needs, or find them on the chain, and write chain.json.

    On a public chain the mesh uses x402's own settlement contract. The mesh's receiver account pays the gas.
    """
    settings = read_settings(data)
    if settings.chain_file.exists():
        fail(f"{settings.chain_file} exists: its mesh's channels are on that chain; choose another --data")
    lock = data_folder.Lock(settings.home)
    try:
        receiver = data_folder.signers(settings)["receiver"]
        asset = check_address(token) if token else ""
        facts = init(http(rpc), receiver, asset, confirmations, lambda step: err.print(f"{step} …", highlight=False))
        facts.write(settings.chain_file)
    finally:
        lock.release()
    print(f"{settings.chain_file}: chain {facts.chain_id}, token {facts.token}, split {facts.split}")
    print(f"run the mesh on it: LEBEN_RPC_URL=… leben up --ledger evm --data {data}")


def chain_genesis() -> None:
    """Print the `alloc` entries of a genesis file that put the settlement contracts at their addresses."""
    print(orjson.dumps(genesis_alloc(), option=orjson.OPT_INDENT_2).decode())


def chain_withdraw(
    channel: Id,
    key: Key,
    rpc: Rpc,
    amount: Annotated[str, typer.Option("--amount", help="Atomic units; everything unclaimed by default.")] = "",
) -> None:
    """Announce the withdrawal of a channel's money by the payer's own transaction, without the mesh."""
    chain, signer = _connect(rpc, key)
    config = config_of(chain, channel)
    balance, claimed = chain.read(chain.escrow.functions.channels(bytes.fromhex(channel[2:])))
    transaction = ChainPayer(chain, signer).initiate(config, check_amount(amount) if amount else balance - claimed)
    then = f"leben chain finish {channel} --key {key} --rpc …"  # not the URL: it may hold a secret
    print(f"announced, transaction {transaction}; in {config.withdraw_delay} s: {then}")


def chain_finish(channel: Id, key: Key, rpc: Rpc) -> None:
    """Take the announced money, once the channel's delay has passed."""
    chain, signer = _connect(rpc, key)
    print(f"taken, transaction {ChainPayer(chain, signer).finalize(config_of(chain, channel))}")


def chain_root(
    epoch: Annotated[int, typer.Argument(min=0, help="The epoch that a receipt file names.")],
    rpc: Rpc,
    split: Annotated[str, typer.Option(help="The Split contract, from the mesh's catalogue.")],
    token: Annotated[str, typer.Option(help="The token of payment.")],
    receiver: Annotated[str, typer.Option(help="The receiver of the channels.")],
) -> None:
    """Print an epoch's Merkle root and payouts, from the chain alone."""
    addresses = {name: check_address(raw) for name, raw in {"split": split, "token": token}.items()}
    chain = Chain(http(rpc), bare(http(rpc), **addresses))
    ledger = EvmLedger(chain, Sender(chain, Signer.generate()), Configs(chain.facts.chain_id))
    published = ledger.root(epoch, check_address(receiver))
    if published is None:
        fail("no such epoch was published for this receiver and token")
    rows = [
        {"owner": part.owner, "carrier": part.carrier, "dapp": part.dapp, "amount": str(part.amount)}
        for part in ledger.payouts(epoch, check_address(receiver))
    ]
    print(orjson.dumps({"epoch": epoch, "root": published, "payouts": rows}, option=orjson.OPT_INDENT_2).decode())


def _connect(rpc: str, key: Path) -> tuple[Chain, Signer]:
    if not key.is_file():
        fail(f"there is no key file {key}")
    chain = Chain(http(rpc), bare(http(rpc)))
    return chain, Signer.from_file(key, key_password())
