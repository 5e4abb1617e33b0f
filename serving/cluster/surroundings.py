"""Makes a process's surroundings fit for a mesh before Ray starts: open files, proxies, the working directory.

What cannot be made fit is refused in one sentence with the remedy: Ray and HAProxy would fail later, with a traceback.
"""

from __future__ import annotations

import os
import resource
from pathlib import Path

from serving.config import Settings
from serving.errors import StartError

MIN_FILES = 10_267
"""Files that HAProxy opens for the connections that Serve lets it take."""
WANTED_FILES = 65_536
MAX_TMPDIR = 60
"""Ray's dashboard makes sockets in TMPDIR, whose paths end at 107 characters."""
ANY_ADDRESS = "0.0.0.0/0,::/0"
RAY_VARIABLES = ("RAY_ADDRESS", "RAY_JOB_CONFIG_JSON_ENV_VAR", "RAY_RUNTIME_ENV_HOOK")
"""With these in a shell `ray.init` would join another cluster, or run another program's hooks."""


def prepare(settings: Settings) -> None:
    """Raises the limit of open files, drops Ray's variables of the shell and a TMPDIR too long for sockets.

    Raises:
        StartError: the path of the data folder is no UTF-8, or the system allows too few open files.
    """
    check_path(settings.home)
    raise_file_limit()
    if len(os.environ.get("TMPDIR", "")) > MAX_TMPDIR:
        os.environ["TMPDIR"] = "/tmp"  # noqa: S108 - what is made there is private
    for name in RAY_VARIABLES:
        os.environ.pop(name, None)


def check_path(path: Path) -> None:
    """Refuses a path that Ray, HAProxy and the ledger's URL could not name."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise StartError(f"--data: {str(path)!a} is not UTF-8: choose a folder with another name") from None


def raise_file_limit() -> None:
    """Raises the soft limit of open files up to the hard one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = hard == resource.RLIM_INFINITY
    if not unlimited and hard < MIN_FILES:
        raise StartError(
            f"this shell may open {hard} files, and the proxy needs {MIN_FILES}: raise the hard limit "
            f"(ulimit -Hn {WANTED_FILES} as root, LimitNOFILE={WANTED_FILES} in a systemd unit, "
            f"--ulimit nofile={WANTED_FILES} for docker run)"
        )
    most = WANTED_FILES if unlimited else min(hard, WANTED_FILES)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def leave_working_directory() -> None:
    """Changes to `/`: a directory that is deleted while the mesh runs would end each process that starts in it.

    Relative entries of PYTHONPATH keep their meaning. A directory that is gone already is left all the same.
    """
    if entries := os.environ.get("PYTHONPATH"):
        os.environ["PYTHONPATH"] = os.pathsep.join(os.path.abspath(entry) for entry in entries.split(os.pathsep))
    os.chdir("/")


def direct(settings: Settings) -> dict[str, str]:
    """Variables by which the mesh's processes reach each other directly, whatever proxies the shell names.

    gRPC and HTTP libraries send a call to this machine's own address to the proxy of `http_proxy`, which cannot reach
    it, and would read signed requests. Processes of a mesh call each other by address, so gRPC uses a proxy for names
    alone, such as that of a remote model's server.
    """
    names = ("no_proxy", "NO_PROXY")
    excluded = [entry for name in names for entry in os.environ.get(name, "").split(",") if entry]
    own = ["localhost", "127.0.0.1", "::1", str(settings.listen)]
    hosts = ",".join(dict.fromkeys([*excluded, *own]))
    grpc_hosts = os.environ.get("no_grpc_proxy", hosts)  # noqa: SIM112 - gRPC reads this spelling
    return dict.fromkeys(names, hosts) | {"no_grpc_proxy": f"{grpc_hosts},{ANY_ADDRESS}"}
