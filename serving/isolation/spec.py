"""`Isolation`: how one DApp is isolated: what is hidden from it, how much it may take."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Isolation:
    """How a DApp is isolated.

    Attributes:
        dapp: its name.
        hidden: folders that do not exist for it even where its packages lie around them: data and runtime folder.
        memory_bytes: most address space of each of its processes; 0: no limit, as there is none beside CUDA.
        message_bytes: most that it may answer at once, and the longest file it may make.
        call_s: how long it may take over one batch, intake or report before it is killed.
        tasks: most processes and threads.
        sandbox_mode: ``"namespaces"``, or ``"landlock"`` where the machine refuses those.
        declared: what it said of itself when the mesh started; a replica's child must say the same. Empty: anything.
        package: folder of an installed version that lies beside the environment, seen by the child alone: a stranger's
            modules on the path of the replica would be imported there by whatever looks for a module that is not there.
            Empty: the environment offers it.
    """

    dapp: str
    hidden: tuple[str, ...] = ()
    memory_bytes: int = 8 << 30
    message_bytes: int = 1 << 30
    call_s: float = 60.0
    tasks: int = 64
    sandbox_mode: str = "namespaces"
    declared: bytes = field(default=b"", repr=False)
    package: str = ""
