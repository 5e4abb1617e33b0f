"""Confines the process of an isolated DApp before it reads any of the DApp's code.

Run as a script, by path, with Python's site packages off, so that a package's start-up hooks run confined too. The
process gets its own namespaces (no network, no other process, no System V memory), a root folder that holds Python and
the packages and nothing else, its own user id when the mesh runs as root, and no way to privileges. A path that is not
put into that root does not exist: keys, ledger, sockets and other users' files need no rule. Standard library alone.
"""

from __future__ import annotations

import ctypes
import importlib.util
import json
import os
import platform
import resource
import select
import signal
import site
import socket
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

NEW_NS, NEW_UTS, NEW_IPC, NEW_USER, NEW_PID, NEW_NET = (
    0x00020000,
    0x04000000,
    0x08000000,
    0x10000000,
    0x20000000,
    0x40000000,
)
MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_BIND, MS_REC, MS_PRIVATE = 2, 4, 8, 4096, 16384, 1 << 18
MNT_DETACH = 2
PR_SET_PDEATHSIG, PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS = 1, 24, 38
MOUNT_ATTR_RDONLY, MOUNT_ATTR_NOSUID, AT_RECURSIVE, MOUNT_SETATTR = 1, 2, 0x8000, 442
PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
CAPABILITY_V3, LAST_CAPABILITY = 0x20080522, 40
FIRST_UID, UIDS = 61_184, 4_336
"""User ids that systemd gives to unnamed services too; one for each child, so that no DApp can signal another."""
SYSTEM = ("/usr", "/lib", "/lib64", "/bin", "/etc/ld.so.cache", "/etc/localtime", "/dev/null", "/dev/zero",
          "/dev/random", "/dev/urandom")  # fmt: skip
STAGES = ("/mnt", "/media", "/srv")
SCRATCH_BYTES = 64 << 20

_libc = ctypes.CDLL(None, use_errno=True)


def enter(plan: dict[str, Any]) -> None:
    """Confines this process; returns in the child process, which runs the DApp.

    Args:
        plan: from `Isolation.plan`: `readable` (paths put into the new root), `hidden` (folders emptied there),
            `memory_bytes`, `file_bytes`, `tasks` and more.

    Raises:
        OSError: the kernel refuses a step; none of the DApp's code may run then.
    """
    root, uid = os.getuid() == 0, os.getuid()
    gid = os.getgid()
    if plan["sandbox_mode"] == "landlock":
        _enter_landlock(plan, root)
        return
    spaces = NEW_NS | NEW_UTS | NEW_IPC | NEW_PID | NEW_NET
    _call(_libc.unshare, "unshare", spaces if root else spaces | NEW_USER)
    if root:
        uid = gid = FIRST_UID + os.getpid() % UIDS
    else:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{uid} {uid} 1")
        Path("/proc/self/gid_map").write_text(f"{gid} {gid} 1")
    _become_first(int(plan["control"]))
    _new_root(plan["readable"], plan["hidden"])
    if root:
        os.setgroups([])
    _drop(root, uid, gid)
    _limit(plan)


def _enter_landlock(plan: dict[str, Any], root: bool) -> None:
    place = Path(__file__).with_name("landlock.py")
    spec = importlib.util.spec_from_file_location("landlock", place)
    if spec is None or spec.loader is None:
        raise OSError(f"{place} is missing")
    landlock = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(landlock)
    readable = [*SYSTEM, *_outermost(plan["readable"])]
    # Landlock cannot hide a folder again that lies in a readable one.
    for path in plan["hidden"]:
        if any(os.path.abspath(path).startswith(f"{os.path.abspath(other)}/") for other in readable):
            raise OSError(
                f"{path} lies in a folder that packages are read from: stop the mesh and move it out of there (--data)"
            )
    ruleset = landlock.rules(readable, [plan["scratch"], *_graphics()])
    uid, gid = os.getuid(), os.getgid()
    # Another user cannot reach a Python below root's own home; then root's id is kept, without its privileges.
    root = root and all(os.stat(above).st_mode & 1 for path in readable for above in Path(path).parents)
    if root:
        uid = gid = FIRST_UID + os.getpid() % UIDS
        os.chown(plan["scratch"], uid, gid)
    _become_first(int(plan["control"]))
    if root:
        os.setgroups([])
    _drop(root, uid, gid)
    # Without a user namespace the limit on tasks would count every process of the user.
    _limit(plan if root else {**plan, "tasks": resource.RLIM_INFINITY})
    landlock.shut(ruleset)


def _become_first(control: int) -> None:
    """Forks the child, process 1 of its namespace: when it ends, the kernel ends everything it has started."""
    child = os.fork()
    if child == 0:
        return
    # The other end of the control socket closes whenever the replica ends. PR_SET_PDEATHSIG would fire too early: the
    # kernel counts the thread that started us as the parent.
    watch = select.poll()
    watch.register(control, 0)
    watch.register(os.pidfd_open(child), select.POLLIN)
    watch.poll()
    os._exit(0)


def _new_root(readable: list[str], hidden: list[str]) -> None:
    _mount("none", "/", "", MS_REC | MS_PRIVATE)
    stage = next(path for path in STAGES if os.path.isdir(path))
    _mount("tmpfs", stage, "tmpfs", MS_NOSUID | MS_NODEV, "mode=0755,size=1m")
    for path in [*SYSTEM, *_graphics(), *_outermost(readable)]:
        if os.path.exists(path):
            _bind(path, stage + path)
    for path in hidden:
        if os.path.isdir(stage + path):
            _mount("tmpfs", stage + path, "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, "mode=0000,size=4k")
    for path in ("/proc", "/dev/shm", "/old"):  # noqa: S108 - folders of the new root
        os.makedirs(stage + path, exist_ok=True)
    # A container that hides parts of /proc may refuse a new one; then the sandbox has no /proc.
    with suppress(OSError):
        _mount("proc", f"{stage}/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC)
    number = PIVOT_ROOT[platform.machine()]
    _call(_libc.syscall, "pivot_root", number, stage.encode(), f"{stage}/old".encode())
    os.chdir("/")
    _call(_libc.umount2, "umount", b"/old", MNT_DETACH)
    attributes = (ctypes.c_uint64 * 4)(MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID, 0, 0, 0)
    size = ctypes.sizeof(attributes)
    _call(_libc.syscall, "mount_setattr", MOUNT_SETATTR, -100, b"/", AT_RECURSIVE, ctypes.byref(attributes), size)
    _mount("tmpfs", "/dev/shm", "tmpfs", MS_NOSUID | MS_NODEV, f"mode=1777,size={SCRATCH_BYTES}")  # noqa: S108


def _graphics() -> list[str]:
    return [str(path) for path in Path("/dev").glob("nvidia*") if not path.is_dir()]


def _outermost(paths: list[str]) -> list[str]:
    """The paths that lie in no other one: binding a folder a second time would cover what was bound inside it."""
    outermost: list[str] = []
    for path in sorted(set(map(os.path.abspath, paths))):
        if path != "/" and not any(path.startswith(f"{other}/") or path == other for other in (*outermost, *SYSTEM)):
            outermost.append(path)
    return outermost


def _bind(source: str, target: str) -> None:
    if os.path.isdir(source):
        os.makedirs(target, exist_ok=True)
    else:
        os.makedirs(os.path.dirname(target), exist_ok=True)
        os.close(os.open(target, os.O_CREAT | os.O_WRONLY, 0o644))
    _mount(source, target, "", MS_BIND | MS_REC)


def _drop(root: bool, uid: int, gid: int) -> None:
    """Drops every privilege for good: no capability remains in any set, and no program can regain one."""
    for capability in range(LAST_CAPABILITY + 1):
        _libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)
    if root:
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)
    header, nothing = (ctypes.c_uint32 * 2)(CAPABILITY_V3, 0), (ctypes.c_uint32 * 6)()
    _call(_libc.capset, "capset", ctypes.byref(header), ctypes.byref(nothing))
    _call(_libc.prctl, "prctl", PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    # A change of the user id clears this, so it comes last. A killed replica leaves no child behind.
    _call(_libc.prctl, "prctl", PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def _limit(plan: dict[str, Any]) -> None:
    limits = {
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_NOFILE: 128,
        resource.RLIMIT_FSIZE: plan["file_bytes"],
        resource.RLIMIT_MSGQUEUE: 0,
    }
    if plan["tasks"] != resource.RLIM_INFINITY:
        limits[resource.RLIMIT_NPROC] = plan["tasks"]
    if plan["memory_bytes"]:
        limits[resource.RLIMIT_AS] = plan["memory_bytes"]
    for kind, limit in limits.items():
        resource.setrlimit(kind, (limit, limit))


def _mount(source: str, target: str, kind: str, flags: int, options: str = "") -> None:
    names = (source.encode(), target.encode(), kind.encode() or None)
    _call(_libc.mount, f"mount {target}", *names, ctypes.c_ulong(flags), options.encode() or None)


def _call(function: Any, what: str, *values: Any) -> None:
    if function(*values) == -1:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def main() -> None:
    """Reads the plan from the command line, confines the process and serves the DApp."""
    plan = json.loads(sys.argv[1])
    with socket.socket(fileno=os.dup(plan["control"])) as control:
        os.set_inheritable(plan["control"], False)
        try:
            enter(plan)
            del sys.argv[1:]
            site.main()
            sys.path += [path for path in plan["path"] if path not in sys.path]
            from serving.isolation.child import serve
        except BaseException as error:
            control.send(f"{type(error).__name__}: {error}"[:500].encode())
            raise
        control.send(b"")
    serve(socket.socket(fileno=plan["control"]), plan["dapp"])


if __name__ == "__main__":
    main()
