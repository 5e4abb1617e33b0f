"""Reads and writes `chain.json` in the data folder: the chain that a mesh settles on, and its contracts.

`leben chain init` writes it once. It holds no secret: the node's URL, which often does, is a setting.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from channels import private_files
from channels.errors import ChannelError
from channels.ledger import Terms
from channels.protocol import checksummed

GWEI = 10**9


@dataclass(frozen=True, slots=True)
class ChainFile:
    """A chain's identity, the token, the `Split` contract, and how careful to be.

    `genesis` is the hash of block 0; events are read from `from_block` on; a change counts when its block has
    `confirmations` blocks, itself among them; `fee_cap` is the highest fee offered, in wei per gas; `claim_gas` is the
    highest gas of one claim.
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
        private_files.replace(path, (json.dumps(asdict(self), indent=1) + "\n").encode())

    @classmethod
    def read(cls, path: Path) -> ChainFile:
        """Reads the file.

        Raises:
            ChannelError: there is none, or it is not what `leben chain init` writes.
        """
        if not path.exists():
            raise ChannelError("chain_file", f"{path} is missing: leben chain init --rpc URL --data FOLDER writes it")
        try:
            chain = cls(**json.loads(path.read_text()))
            numbers = (
                chain.chain_id,
                chain.from_block,
                chain.confirmations,
                chain.fee_cap,
                chain.claim_gas,
                chain.decimals,
            )
            sound = all(type(number) is int and number >= 0 for number in numbers) and chain.confirmations > 0
            if not sound or checksummed(chain.token) != chain.token or checksummed(chain.split) != chain.split:
                raise ValueError
        except (ValueError, TypeError, AttributeError):
            raise ChannelError("chain_file", f"{path} is not what leben chain init writes: write it anew") from None
        return chain
