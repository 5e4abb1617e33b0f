"""`ChainFile`: which chain a mesh settles on and where its contracts are; `chain.json` in the data folder.

Written once by `leben chain init`, after looking at the chain; holds no secret (the node's URL often does, so it is a
setting). Used by `ledger_evm.py`.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from channels.errors import ChannelError
from channels.ledger import Terms
from channels.protocol import checksummed

GWEI = 10**9


@dataclass(frozen=True, slots=True)
class ChainFile:
    """A chain's identity, the token, the `Split` contract, and how careful to be.

    `genesis` is the hash of block 0; `from_block` the block from which our events are looked for; a change counts when
    its block has `confirmations` blocks, itself among them; `fee_cap` is the most wei per gas that is ever offered;
    `claim_gas` the most gas that one claim may take.
    """

    chain_id: int
    genesis: str
    token: str
    token_name: str
    token_version: str
    decimals: int
    split: str
    from_block: int = 0
    confirmations: int = 1
    fee_cap: int = 200 * GWEI
    claim_gas: int = 12_000_000

    @property
    def terms(self) -> Terms:
        """What signatures are valid under."""
        return Terms(self.chain_id, self.token, self.token_name, self.token_version, self.decimals, self.split)

    def write(self, path: Path) -> None:
        """Writes the file anew, in one step."""
        fresh = path.with_suffix(".new")
        fresh.write_text(json.dumps(asdict(self), indent=1) + "\n")
        fresh.replace(path)

    @classmethod
    def read(cls, path: Path) -> ChainFile:
        """Reads the file.

        Raises:
            ChannelError: there is none, or it is not what `leben chain init` writes.
        """
        if not path.exists():
            raise ChannelError("chain_file", f"{path} is missing: leben chain init --rpc URL --data FOLDER writes it")
        try:
            made = cls(**json.loads(path.read_text()))
            numbers = (made.chain_id, made.from_block, made.confirmations, made.fee_cap, made.claim_gas, made.decimals)
            sound = all(type(number) is int and number >= 0 for number in numbers) and made.confirmations > 0
            if not sound or checksummed(made.token) != made.token or checksummed(made.split) != made.split:
                raise ValueError
        except (ValueError, TypeError, AttributeError):
            raise ChannelError("chain_file", f"{path} is not what leben chain init writes: write it anew") from None
        return made
