"""Defines the exceptions of the serving side: a call that is refused, and a mesh that cannot start.

Imports nothing, so that the process of an isolated DApp can raise them. `serving/protocol/refusals.py` maps codes to
HTTP statuses.
"""

from __future__ import annotations


class CallError(Exception):
    """A call that is refused and costs nothing. `code` is a row of `serving.protocol.STATUS`.

    The message names the cause and the remedy, and never a value of the input, which may be a patient's.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message

    def __reduce__(self) -> tuple[type[CallError], tuple[str, str]]:
        """Keeps the code when the error crosses a Ray handle."""
        return type(self), (self.code, self.message)


class StartError(Exception):
    """The mesh or one of its applications cannot start; the message says what to change."""


class NoNode(StartError):
    """No node of the mesh can take a replica; a node that joins later may."""


class NoRoom(NoNode):
    """The nodes that could take a replica are full: another DApp holds what it needs."""
