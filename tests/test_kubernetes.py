"""A mesh on Kubernetes as `deploy/` sets it up: held to the schemas, and to the code that its pods run."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import kubernetes_validate
import yaml

from serving.config import mesh_file
from serving.config.settings import Settings
from serving.mesh.applications import DRAIN_S
from tests.conftest import RunningMesh
from tests.deployment import DEPLOY, settings_from, verb

FILES = sorted((DEPLOY / "kubernetes").glob("*.yaml"))
RESOURCES = [resource for path in FILES for resource in yaml.safe_load_all(path.read_text())]
MESH = next(resource for resource in RESOURCES if resource["kind"] == "RayCluster")
GROUPS = [MESH["spec"]["headGroupSpec"], *MESH["spec"]["workerGroupSpecs"]]
SECRET, CONFIG = (
    {"ray.token", "valkey.acl", "postgresql.password"},
    {"valkey.conf", "postgresql.conf", "postgresql.sql"},
)
"""The keys of the secret and of the configmap `leben-files` that docs/deploy.md makes; mesh.env is `leben-mesh`."""


def templates() -> Iterator[dict[str, Any]]:
    """Every pod that there is to be."""
    yield from (group["template"] for group in GROUPS)
    for resource in RESOURCES:
        spec = resource.get("spec", {})
        yield from (spec["template"] for _ in [0] if resource["kind"] in ("StatefulSet", "Job"))
        yield from (spec["jobTemplate"]["spec"]["template"] for _ in [0] if resource["kind"] == "CronJob")


def settings(group: dict[str, Any]) -> Settings:
    """What the pods of a group start with, at some address."""
    env = {row["name"]: row.get("value", "10.0.0.5") for row in container(group)["env"]}
    return settings_from({name: value for name, value in env.items() if name.startswith("LEBEN_")})


def container(group: dict[str, Any]) -> dict[str, Any]:
    return dict(group["template"]["spec"]["containers"][0])


def ports(group: dict[str, Any]) -> dict[str, int]:
    return {port["name"]: port["containerPort"] for port in container(group)["ports"]}


def policies() -> dict[str, Any]:
    return {row["metadata"]["name"]: row["spec"] for row in RESOURCES if row["kind"] == "NetworkPolicy"}


def test_every_resource_is_what_its_schema_says() -> None:
    for resource in RESOURCES:
        if resource is not MESH:
            kubernetes_validate.validate(resource, "1.37", strict=True)
    jsonschema.validate(MESH, json.loads((Path(__file__).parent / "kuberay.json").read_text()))
    for group in GROUPS:
        pod = {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "x"}, "template": group["template"]}
        kubernetes_validate.validate(pod, "1.37", strict=True)


def test_head_and_nodes_start_with_verbs_and_settings_that_exist() -> None:
    head, *nodes = GROUPS
    for group in GROUPS:
        words = container(group)["command"]
        assert words[:6] == ["tini", "--", "env", "-u", "RAY_ADDRESS", "leben"]
        assert verb(words[6:]) == "up" and ("--join" in words) == (group is not head)
        variables, limit = settings(group), container(group)["resources"]["limits"]
        # What the autoscaler believes of a node, what the pod may use, and what Ray is told, are one number.
        assert str(variables.cpus) == limit["cpu"] == group["rayStartParams"]["num-cpus"]
        assert limit.get("nvidia.com/gpu") == group["rayStartParams"].get("num-gpus")
        assert variables.clustered and variables.data == Settings().data
    assert len({settings(group).port for group in GROUPS}) == 1
    assert settings(nodes[0]).labels and nodes[0]["minReplicas"] >= 1
    assert (
        MESH["spec"]["rayVersion"]
        == re.findall(r"ray\[.*\]==([\d.]+)", (DEPLOY.parent / "pyproject.toml").read_text())[0]
    )


def test_ports_are_those_that_the_code_derives() -> None:
    for group in GROUPS:
        variables = settings(group)
        expected = {"http": variables.port, "metrics": variables.metrics_port}
        if group is GROUPS[0]:
            expected |= {"gcs-server": variables.join_port, "grpc": variables.grpc_port}
            assert variables.join_port == 6379, "where KubeRay's autoscaler and its waiting container look"
        assert ports(group) == expected
    services = {row["metadata"]["name"]: row["spec"] for row in RESOURCES if row["kind"] == "Service"}
    ports_ = set(ports(GROUPS[0])) | {
        port["containerPort"] for template in templates() for port in template["spec"]["containers"][0].get("ports", [])
    }
    for service in services.values():
        assert {port.get("targetPort", port["port"]) for port in service["ports"]} <= ports_
    (ingress,) = [row["spec"] for row in RESOURCES if row["kind"] == "Ingress"]
    for path in ingress["rules"][0]["http"]["paths"]:
        backend = path["backend"]["service"]
        assert backend["port"]["name"] in {port["name"] for port in services[backend["name"]]["ports"]}


def test_replicas_and_ray_can_be_reached_from_the_mesh_alone() -> None:
    rules = policies()
    assert rules["nobody"] == {"podSelector": {}, "policyTypes": ["Ingress"]}
    mesh = {"podSelector": {"matchLabels": {"app": "leben"}}}
    opened = set()
    for rule in rules["mesh"]["ingress"]:
        if rule["from"] != [mesh]:
            opened |= {port["port"] for port in rule["ports"]}
    assert opened == {"http", "grpc", "metrics"}
    assert rules["store"]["ingress"] == [{"from": [mesh], "ports": [{"port": 6379}]}]
    for group in GROUPS:
        assert group["template"]["metadata"]["labels"] == {"app": "leben"}
    reached = [to for rule in rules["nodes"]["egress"] for to in rule["to"]]
    assert mesh in reached and len(reached) == 3, "the mesh, the store, and names"


def test_no_pod_has_a_right_that_it_does_not_need() -> None:
    for template in templates():
        spec = template["spec"]
        assert spec["enableServiceLinks"] is False, "a service named leben would be LEBEN_PORT"
        assert spec["securityContext"]["runAsNonRoot"] and spec["securityContext"]["runAsUser"] > 0
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container_ in [*spec["containers"], *spec.get("initContainers", [])]:
            assert (
                container_["securityContext"]["capabilities"] == {"drop": ["ALL"]} and container_["resources"]["limits"]
            )
            assert not container_["securityContext"]["allowPrivilegeEscalation"]
            assert re.search(r":\d[\w.-]+$", container_["image"]), container_["image"]
            if container_["image"].startswith("leben-mesh"):
                assert container_["image"].removesuffix("-cuda") == f"leben-mesh:{version('leben-mesh')}"
                assert container_["securityContext"]["readOnlyRootFilesystem"]


def test_a_node_that_is_stopped_has_the_time_that_it_takes() -> None:
    for group in GROUPS:
        waits = settings(group).place_s if group is not GROUPS[0] else 0
        assert group["template"]["spec"]["terminationGracePeriodSeconds"] >= DRAIN_S + waits + 30


def test_secrets_and_files_are_those_that_are_made(tmp_path: Path) -> None:
    subprocess.run(["sh", DEPLOY / "secrets.sh", tmp_path / "made"], check=True, capture_output=True)
    names = {path.name for path in (tmp_path / "made").iterdir()}
    text = yaml.safe_dump_all(RESOURCES)
    used = set(re.findall(r"secretName: (\S+)", text)) | set(re.findall(r"secretRef:\s+name: (\S+)", text))
    assert used == {"leben", "leben-mesh", "leben-tls"}
    for template in templates():
        for volume in template["spec"]["volumes"]:
            for item in volume.get("secret", {}).get("items", []):
                assert item["key"] in SECRET & names
    assert set(re.findall(r"subPath: (\S+)", text)) == CONFIG | {"valkey.acl"}
    assert all((DEPLOY / name).exists() for name in CONFIG)
    install = (DEPLOY.parent / "docs/deploy.md").read_text()
    for name in SECRET | CONFIG | {"mesh.env", *(path.name for path in FILES)}:
        assert re.search(rf"^(?:task=\$\()?kubectl .*{name}|^  --from-(?:env-)?file=\S*{name}", install, re.M), name


def test_a_token_lies_where_nobody_else_looks_and_a_restore_changes_the_database(tmp_path: Path) -> None:
    (tmp_path / "ray.token").write_text("token")
    words = GROUPS[0]["template"]["spec"]["initContainers"][0]["command"]
    here = [word.replace("/var/lib/leben", str(tmp_path)).replace("/secrets", str(tmp_path)) for word in words]
    for _ in range(2):  # a pod that starts again finds the folders
        subprocess.run(here, check=True)
    for name, mode in (("data", 0o700), ("data/keys", 0o700), ("data/keys/ray.token", 0o600)):
        assert (tmp_path / name).stat().st_mode & 0o777 == mode
    subprocess.run(["sh", DEPLOY / "secrets.sh", tmp_path / "secrets"], check=True, capture_output=True)
    before = (tmp_path / "secrets/mesh.env").read_text()
    (line,) = re.findall(r"^sed .*", (DEPLOY.parent / "docs/deploy.md").read_text(), re.M)
    subprocess.run(["sh", "-c", line], check=True, cwd=tmp_path)
    assert (tmp_path / "secrets/mesh.env").read_text() == before.replace(":5432/leben\n", ":5432/leben2\n") != before


def test_the_mesh_file_of_the_page_can_be_placed(tmp_path: Path) -> None:
    (text,) = re.findall(r"```yaml\n(# leben.yaml.*?)```", (DEPLOY.parent / "docs/deploy.md").read_text(), re.S)
    (tmp_path / "leben.yaml").write_text(text)
    entries = mesh_file.read(Settings(data=tmp_path)).dapps.values()
    places = [entry.where for entry in entries if entry.where.gpus]
    assert places and all(where.labels.items() <= settings(GROUPS[1]).labels.items() for where in places)


def test_the_backup_is_made_of_verbs_that_exist() -> None:
    (job,) = [row for row in RESOURCES if row["kind"] == "CronJob"]
    (backup,) = job["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"]
    verbs = [verb(words.split()) for words in re.findall(r"^leben ([a-z ]+)", backup["command"][-1], re.M)]
    assert verbs == ["ledger verify", "ledger backup"]
    (task,) = [row for row in RESOURCES if row["kind"] == "Job"]
    (words,) = [container_["command"] for container_ in task["spec"]["template"]["spec"]["containers"]]
    assert words[0] == "leben" and verb(words[1:]) == "keys rotate"


def test_probes_ask_what_a_mesh_answers(simple: RunningMesh) -> None:
    paths = set()
    for group in GROUPS:
        for name in ("startupProbe", "readinessProbe", "livenessProbe"):
            paths |= {container(group).get(name, {}).get("httpGet", {}).get("path")}
    for path in paths - {None}:
        assert httpx.get(f"{simple.url}{path}", timeout=30).status_code == 200, path
    assert len(paths) == 4
