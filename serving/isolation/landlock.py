"""Confines a process with Landlock and seccomp, which need no privilege, where the machine refuses namespaces.

Weaker than namespaces, and only on request (`LEBEN_ISOLATION=landlock`, `docs/isolation.md`): files outside Python and
the packages cannot be opened, no socket can be made, no process started, traced or signalled. A kernel without either
is refused: there is no third, weaker mode. Loaded by path; standard library alone.
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct
from typing import Any

CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446
READ_FILE, READ_DIR, EXECUTE = 1 << 2, 1 << 3, 1 << 0
OF_FILES = 1 << 0 | 1 << 1 | 1 << 2 | 1 << 14
RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}
"""How many rights on files each version of Landlock has, lowest bit first; later versions have no more."""
NET, SCOPES = 0b11, 0b11
PR_SET_SECCOMP, MODE_FILTER = 22, 2
ALLOW, EPERM, ENOSYS, KILL = 0x7FFF0000, 0x00050001, 0x00050026, 0x80000000
LOAD, AND, EQUAL, AT_LEAST, ANY_BIT, RETURN = 0x20, 0x54, 0x15, 0x35, 0x45, 0x06
CLONE_THREAD, CLONE3, SOCK_DGRAM = 0x10000, 435, 2
ARCHES = {
    "x86_64": (0xC000003E, 56, 53, (
        41, 42, 29, 57, 58, 62, 64, 68, 101, 129, 165, 200, 234, 240, 248, 249, 250, 272, 297, 298, 308, 310, 311, 312,
        321, 323,
    )),
    "aarch64": (0xC00000B7, 220, 199, (
        198, 203, 194, 129, 190, 186, 117, 138, 40, 130, 131, 180, 217, 218, 219, 97, 240, 241, 268, 270, 271, 272, 280,
        282,
    )),
}  # fmt: skip
"""Audit number, clone, socketpair, and the calls that are refused, in this order: socket, connect, shmget, (fork,
vfork,) kill, semget, msgget, ptrace, rt_sigqueueinfo, mount, tkill, tgkill, mq_open, add_key, request_key, keyctl,
unshare, rt_tgsigqueueinfo, perf_event_open, setns, process_vm_readv, process_vm_writev, kcmp, bpf, userfaultfd."""
ALIKE = (424, 425, 434, 438, 440)
"""The same everywhere: pidfd_send_signal, io_uring_setup, pidfd_open, pidfd_getfd, process_madvise."""

_libc = ctypes.CDLL(None, use_errno=True)


def rules(readable: list[str], writable: list[str]) -> int:
    """Makes a ruleset under which the first paths can be read and the second ones written too; its descriptor.

    Raises:
        OSError: the kernel has no Landlock.
    """
    version = _syscall("landlock", CREATE_RULESET, None, ctypes.c_size_t(0), 1)
    handled = (1 << RIGHTS.get(version, 16)) - 1
    words = [handled, NET if version >= 4 else 0, SCOPES if version >= 6 else 0]
    attributes = struct.pack("<3Q", *words)[: 8 if version < 4 else 16 if version < 6 else 24]
    ruleset = _syscall("landlock", CREATE_RULESET, attributes, ctypes.c_size_t(len(attributes)), 0)
    for paths, access in ((readable, READ_FILE | READ_DIR | EXECUTE), (writable, handled)):
        for path in paths:
            if not os.path.exists(path):
                continue
            place = os.open(path, os.O_PATH | os.O_CLOEXEC)
            rights = access & handled if os.path.isdir(path) else access & handled & OF_FILES
            _syscall("landlock", ADD_RULE, ruleset, 1, struct.pack("<Qi", rights, place), 0)
            os.close(place)
    return ruleset


def shut(ruleset: int) -> None:
    """Enforces the ruleset and the filter of system calls for good; PR_SET_NO_NEW_PRIVS must be set before.

    Raises:
        OSError: the kernel refuses.
    """
    _syscall("landlock", RESTRICT_SELF, ruleset, 0)
    os.close(ruleset)
    code = seccomp_filter(platform.machine())
    buffer = ctypes.create_string_buffer(code, len(code))
    program = struct.pack("<HxxxxxxQ", len(code) // 8, ctypes.addressof(buffer))
    if _libc.prctl(PR_SET_SECCOMP, MODE_FILTER, program, 0, 0) == -1:
        raise OSError(ctypes.get_errno(), "seccomp")


def seccomp_filter(machine: str) -> bytes:
    """The filter of system calls for a machine (`platform.machine()`), as classic BPF: 8 bytes an instruction."""
    arch, clone, pair, refused = ARCHES[machine]
    numbers = sorted({*refused, *ALIKE})
    lines: list[tuple[int, int, int, int]] = [(LOAD, 0, 0, 4), (EQUAL, 1, 0, arch), (RETURN, 0, 0, KILL)]
    # Numbers from here on name the same calls in the x32 ABI.
    lines += [(LOAD, 0, 0, 0), (AT_LEAST, 0, 1, 0x40000000), (RETURN, 0, 0, KILL)]
    for number in numbers:
        lines += [(EQUAL, 0, 1, number), (RETURN, 0, 0, EPERM)]
    # One end of a datagram pair could send to any other socket by its path; one end of a stream pair cannot.
    lines += [(EQUAL, 0, 5, pair), (LOAD, 0, 0, 24), (AND, 0, 0, 0xF), (EQUAL, 0, 1, SOCK_DGRAM)]
    lines += [(RETURN, 0, 0, EPERM), (RETURN, 0, 0, ALLOW)]
    # Without clone3 the C library falls back to clone, whose flags the filter can read: threads alone.
    lines += [(EQUAL, 0, 1, CLONE3), (RETURN, 0, 0, ENOSYS), (EQUAL, 1, 0, clone), (RETURN, 0, 0, ALLOW)]
    lines += [(LOAD, 0, 0, 16), (ANY_BIT, 1, 0, CLONE_THREAD), (RETURN, 0, 0, EPERM), (RETURN, 0, 0, ALLOW)]
    return b"".join(struct.pack("<HBBI", *line) for line in lines)


def _syscall(what: str, *words: Any) -> int:
    result = int(_libc.syscall(*words))
    if result == -1:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result
