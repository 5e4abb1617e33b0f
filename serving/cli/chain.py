"""`leben chain`: makes a chain ready for a mesh, and lets payers and outsiders deal with it without the mesh.

`withdraw`, `finish` and `root` need a node and nothing else: not the mesh, not its consent, not its files.
web3 takes a second to import, so each command does it by itself.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import orjson
import typer

from channels.protocol import Signer
from serving.cli.account import Id, Key, whole
from serving.cli.console import HERE, Data, err, fail
from serving.cli.ledger import checked_address
from serving.cluster import data_folder
from serving.config import Settings

if TYPE_CHECKING:
    from channels.evm.chain import Chain

chain_app = typer.Typer(no_args_is_help=True, help="Settlement on a chain: contracts, a payer's way out, roots.")
Rpc = Annotated[str, typer.Option("--rpc", help="URL of a node of the chain.", envvar="LEBEN_RPC_URL")]


@chain_app.command("init")
def chain_init(
    rpc: Rpc,
    token: Annotated[
        str, typer.Option(help="What calls are paid in; on a chain of your own a dev token is made.")
    ] = "",
    confirmations: Annotated[int, typer.Option(min=1, max=256, help="Blocks until a change counts.")] = 1,
    data: Data = HERE,
) -> None:
    """Put the contracts that a mesh needs onto a chain, or find them there, and write chain.json.

    On a public chain x402's own settlement contract is used. The mesh's receiver account pays the gas.
    """
    from channels.evm.deploy import http, init

    settings = Settings(data=data)
    if settings.chain_file.exists():
        fail(f"{settings.chain_file} is there already: its mesh's channels are on that chain; choose another --data")
    lock = data_folder.Lock(settings.home)
    try:
        receiver = data_folder.signers(settings)["receiver"]
        asset = checked_address(token) if token else ""
        facts = init(http(rpc), receiver, asset, confirmations, lambda step: err.print(f"{step} …", highlight=False))
        facts.write(settings.chain_file)
    finally:
        lock.release()
    print(f"{settings.chain_file}: chain {facts.chain_id}, token {facts.token}, split {facts.split}")
    print(f"run the mesh on it: LEBEN_RPC_URL=… leben up --ledger evm --data {data}")


@chain_app.command("genesis")
def chain_genesis() -> None:
    """Print the entries of a genesis file's `alloc` that put the settlement contracts at their addresses."""
    from channels.evm.deploy import genesis_alloc

    print(orjson.dumps(genesis_alloc(), option=orjson.OPT_INDENT_2).decode())


@chain_app.command("withdraw")
def chain_withdraw(
    channel: Id,
    key: Key,
    rpc: Rpc,
    amount: Annotated[str, typer.Option("--amount", help="Atomic units; everything unclaimed by default.")] = "",
) -> None:
    """Announce, by a transaction of the payer's own, that a channel's money is taken out; no mesh is needed."""
    from channels.evm.payer import ChainPayer, config_of

    chain, signer = _reached(rpc, key)
    config = config_of(chain, channel)
    balance, claimed = chain.read(chain.escrow.functions.channels(bytes.fromhex(channel[2:])))
    done = ChainPayer(chain, signer).initiate(config, whole(amount) if amount else balance - claimed)
    then = f"leben chain finish {channel} --key {key} --rpc …"  # its URL may hold a key of the node's
    print(f"announced, transaction {done}; in {config.withdraw_delay} s: {then}")


@chain_app.command("finish")
def chain_finish(channel: Id, key: Key, rpc: Rpc) -> None:
    """Take what was announced, once the channel's delay has passed."""
    from channels.evm.payer import ChainPayer, config_of

    chain, signer = _reached(rpc, key)
    print(f"taken, transaction {ChainPayer(chain, signer).finalize(config_of(chain, channel))}")


@chain_app.command("root")
def chain_root(
    epoch: Annotated[int, typer.Argument(min=0, help="The epoch that a receipt file names.")],
    rpc: Rpc,
    split: Annotated[str, typer.Option(help="The Split contract, from the mesh's catalogue.")],
    token: Annotated[str, typer.Option(help="What calls are paid in.")],
    receiver: Annotated[str, typer.Option(help="Whom the channels pay.")],
) -> None:
    """Print the Merkle root that was published with an epoch, and whom it paid what, from the chain alone."""
    from channels.evm.chain import Chain
    from channels.evm.deploy import bare, http
    from channels.evm.ledger import EvmLedger
    from channels.evm.sender import Sender

    where = {name: checked_address(raw) for name, raw in {"split": split, "token": token}.items()}
    chain = Chain(http(rpc), bare(http(rpc), **where))
    ledger = EvmLedger(chain, Sender(chain, Signer.generate()), lambda name: None)
    found = ledger.root(epoch, checked_address(receiver))
    if found is None:
        fail("no such epoch was published for this receiver and token")
    rows = [
        {"owner": part.owner, "carrier": part.carrier, "dapp": part.dapp, "amount": str(part.amount)}
        for part in ledger.payouts(epoch, checked_address(receiver))
    ]
    print(orjson.dumps({"epoch": epoch, "root": found, "payouts": rows}, option=orjson.OPT_INDENT_2).decode())


def _reached(rpc: str, key: Path) -> tuple[Chain, Signer]:
    if not key.is_file():
        fail(f"there is no key file {key}")
    from channels.evm.chain import Chain
    from channels.evm.deploy import bare, http

    chain = Chain(http(rpc), bare(http(rpc)))
    return chain, Signer.from_file(key, Settings().key_password.get_secret_value())
