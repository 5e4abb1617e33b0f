"""Writes `seccomp.json`: the filter of `serving/isolation/landlock.py` as libseccomp compiles it.

Needs libseccomp 2.5 or newer (`apt-get install libseccomp2`), no Python binding:

    python tests/vectors/seccomp.py
"""

from __future__ import annotations

import ctypes
import json
import os
from pathlib import Path

REFUSED = (
    "socket", "connect", "shmget", "fork", "vfork", "kill", "semget", "msgget", "ptrace", "rt_sigqueueinfo", "mount",
    "tkill", "tgkill", "mq_open", "add_key", "request_key", "keyctl", "unshare", "rt_tgsigqueueinfo",
    "perf_event_open", "setns", "process_vm_readv", "process_vm_writev", "kcmp", "bpf", "userfaultfd",
    "pidfd_send_signal", "io_uring_setup", "pidfd_open", "pidfd_getfd", "process_madvise",
)  # fmt: skip
ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
ALLOW, KILL_PROCESS, EPERM, ENOSYS = 0x7FFF0000, 0x80000000, 0x00050001, 0x00050026
ACT_BADARCH, MASKED_EQ = 2, 7
CLONE_THREAD, SOCK_TYPE_MASK, SOCK_DGRAM = 0x10000, 0xF, 2


class Comparison(ctypes.Structure):
    """libseccomp's `struct scmp_arg_cmp`."""

    _fields_ = (("arg", ctypes.c_uint), ("op", ctypes.c_int), ("mask", ctypes.c_uint64), ("value", ctypes.c_uint64))


def program(machine: str) -> bytes:
    """The BPF of one machine."""
    library = ctypes.CDLL("libseccomp.so.2")
    library.seccomp_init.restype = ctypes.c_void_p
    context = ctypes.c_void_p(library.seccomp_init(ctypes.c_uint32(ALLOW)))
    native, architecture = ctypes.c_uint32(library.seccomp_arch_native()), ctypes.c_uint32(ARCHITECTURES[machine])
    if native.value != architecture.value:
        _done(library.seccomp_arch_add(context, architecture))
        _done(library.seccomp_arch_remove(context, native))
    _done(library.seccomp_attr_set(context, ACT_BADARCH, ctypes.c_uint32(KILL_PROCESS)))

    def refuse(name: str, action: int, *comparisons: Comparison) -> None:
        number = library.seccomp_syscall_resolve_name(name.encode())  # rules are written in this machine's numbers
        rows = (Comparison * max(len(comparisons), 1))(*comparisons)
        _done(library.seccomp_rule_add_array(context, ctypes.c_uint32(action), number, len(comparisons), rows))

    for name in REFUSED:
        refuse(name, EPERM)
    refuse("clone3", ENOSYS)
    refuse("clone", EPERM, Comparison(0, MASKED_EQ, CLONE_THREAD, 0))
    refuse("socketpair", EPERM, Comparison(1, MASKED_EQ, SOCK_TYPE_MASK, SOCK_DGRAM))
    file = os.memfd_create("bpf")
    _done(library.seccomp_export_bpf(context, file))
    return os.pread(file, 1 << 16, 0)


def _done(status: int) -> None:
    if status:
        raise OSError(-status, os.strerror(-status))


if __name__ == "__main__":
    vectors = {machine: program(machine).hex() for machine in ARCHITECTURES}
    Path(__file__).with_suffix(".json").write_text(json.dumps(vectors, indent=1) + "\n")
