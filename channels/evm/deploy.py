"""Deploys the contracts of a mesh for `leben chain init`, where they are absent.

x402's addresses are hard-coded in every stock client, and channel ids hash them, so the escrow must be at that address.
x402's own contract is used where it is deployed; on a private chain ours is placed there by a node that can place code
(anvil, hardhat) or by the genesis. The `Split` contract and the dev token may have any address.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from web3 import HTTPProvider, Web3
from web3.exceptions import Web3RPCError
from web3.providers.base import JSONBaseProvider

from channels.errors import ChannelError
from channels.evm.chain import REQUEST_TIMEOUT_S, Chain, Reverted, asking, check_escrow
from channels.evm.chain_file import ChainFile
from channels.evm.contracts.build import built
from channels.evm.sender import Sender
from channels.protocol import COLLECTOR, SETTLEMENT, Signer

PLACED = {"ChannelEscrow": SETTLEMENT, "ERC3009Collector": COLLECTOR}
PLACERS = ("anvil_setCode", "hardhat_setCode")
NOBODY = "0x" + "00" * 20
GAS_MONEY = 10**21
"""Given to the receiver's account on a dev chain: 1000 coins."""
Progress = Callable[[str], None]


def genesis_alloc() -> dict[str, dict[str, str]]:
    """The entries of a genesis file's `alloc` that put the settlement contracts at their addresses."""
    return {address: {"balance": "0x0", "code": built(name).runtime} for name, address in PLACED.items()}


def http(url: str) -> HTTPProvider:
    """A connection to a node."""
    return HTTPProvider(url, request_kwargs={"timeout": REQUEST_TIMEOUT_S}, exception_retry_configuration=None)


def init(
    provider: JSONBaseProvider,
    signer: Signer,
    token: str = "",
    confirmations: int = 1,
    progress: Progress = lambda step: None,
) -> ChainFile:
    """Makes a chain ready for a mesh and returns the content of `chain.json`.

    Args:
        provider: the connection to the chain's node.
        signer: the receiver, who pays the gas.
        token: the asset of payments; empty: a dev token is deployed, on a private chain only.
        confirmations: blocks until a change counts.
        progress: called with a text for each step.

    Raises:
        ChannelError: the chain does not allow it; the message names the remedy.
        LedgerUnavailable: the node does not answer.
    """
    web3 = Web3(provider)
    with asking("name its chain"):
        chain_id = web3.eth.chain_id
        genesis = web3.to_hex(web3.eth.get_block(0)["hash"])
        start = web3.eth.block_number
        if not web3.eth.get_code(web3.to_checksum_address(SETTLEMENT)):
            progress(f"placing x402's settlement contract, ours, at {SETTLEMENT}")
            _place(web3)
            _ask(web3, "anvil_setBalance", [signer.address, hex(GAS_MONEY)])
        check_escrow(web3, chain_id)
        own = web3.to_hex(web3.eth.get_code(web3.to_checksum_address(SETTLEMENT))) == built("ChannelEscrow").runtime
    if not token and not own:
        # Anybody may mint it: on a chain that others use it would look like money.
        raise ChannelError("chain_token", "this chain is not one of your own: name the token, --token 0x…")
    plain = ChainFile(chain_id, genesis, token or NOBODY, "", "", 0, NOBODY, start)
    sender = Sender(Chain(provider, plain), signer)
    if not token:
        token = _deploy(sender, plain, provider, "DevToken", progress)
    asset = web3.to_checksum_address(token)
    token_facts = _token_facts(web3, asset)
    split = _deploy(sender, plain, provider, "Split", progress)
    facts = ChainFile(chain_id, genesis, asset, *token_facts, split, start, confirmations)
    Chain(provider, facts).check()
    return facts


def bare(provider: JSONBaseProvider, token: str = NOBODY, split: str = NOBODY) -> ChainFile:
    """The facts that a chain shows by itself, for callers without `chain.json`.

    Raises:
        ChannelError: it has no x402 settlement contract.
        LedgerUnavailable: the node does not answer.
    """
    web3 = Web3(provider)
    with asking("name its chain"):
        chain_id, genesis = web3.eth.chain_id, web3.to_hex(web3.eth.get_block(0)["hash"])
        check_escrow(web3, chain_id)
    return ChainFile(chain_id, genesis, token, "", "", 0, split)


def mint(chain: Chain, sender: Sender, to: str, amount: int) -> str:
    """Makes dev tokens for an address; any other token refuses it."""
    receipt = sender.send(chain.token.functions.mint(Web3.to_checksum_address(to), amount))
    return str(chain.web3.to_hex(receipt["transactionHash"]))


def faucet(chain: Chain, signer: Signer) -> Signer:
    """Gives a signer's account coin for gas, where the node can (anvil, hardhat).

    Raises:
        ChannelError: it cannot.
    """
    for method in ("anvil_setBalance", "hardhat_setBalance"):
        with asking("give coin"):
            if _ask(chain.web3, method, [signer.address, hex(GAS_MONEY)]):
                return signer
    raise ChannelError("chain_place", "this node gives no coin to pay gas with: only a dev chain's does")


def _token_facts(web3: Web3, asset: Any) -> tuple[str, str, int]:
    """Name, version and decimals of a token, before anything is paid for."""
    see: Any = web3.eth.contract(address=asset, abi=built("DevToken").abi).functions
    try:
        with asking("answer for the token"):
            if not web3.eth.get_code(asset):
                raise Reverted("")
            return see.name().call(), see.version().call(), see.decimals().call()
    except Reverted:
        raise ChannelError("chain_token", f"the contract at {asset} is no token with EIP-3009") from None


def _place(web3: Web3) -> None:
    for method in PLACERS:
        if all(_ask(web3, method, [address, built(name).runtime]) for name, address in PLACED.items()):
            return
    text = "this node cannot place code: put `leben chain genesis` into the chain's genesis, or use anvil"
    raise ChannelError("chain_place", text)


def _ask(web3: Web3, method: str, words: list[Any]) -> bool:
    """True if the node knows a method and has done it."""
    try:
        web3.manager.request_blocking(method, words)  # type: ignore[arg-type]
    except Web3RPCError:
        return False
    return True


def _deploy(sender: Sender, plain: ChainFile, provider: JSONBaseProvider, name: str, progress: Progress) -> str:
    progress(f"deploying {name}")
    chain, code = Chain(provider, plain), built(name).creation
    receipt = sender.send_raw(None, code, chain.gas_raw(None, code, sender.address))
    return str(receipt["contractAddress"])
