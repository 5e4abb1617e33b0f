"""`schemathesis` reads the OpenAPI page, calls every route and finds no fault."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import httpx

from tests.conftest import RunningMesh

ROOT = Path(__file__).parent.parent


def test_the_page_names_every_dapp_and_its_tensors(mesh: RunningMesh) -> None:
    page = httpx.get(f"{mesh.url}/openapi.json").json()
    for row in httpx.get(f"{mesh.url}/v1/catalogue").json()["dapps"]:
        schema = page["paths"][f"/v2/models/{row['name']}/infer"]["post"]["requestBody"]["content"]["application/json"]
        tensors = schema["schema"]["properties"]["inputs"]["prefixItems"]
        assert [tensor["properties"]["name"]["const"] for tensor in tensors] == [
            tensor["name"] for tensor in row["inputs"]
        ]
    assert "/v2/repository/models/{name}/load" not in page["paths"], "only where callers may"


def test_schemathesis_finds_no_fault(mesh: RunningMesh, tmp_path: Path) -> None:
    command = [str(Path(sys.executable).with_name("schemathesis")), "--config-file", str(ROOT / "schemathesis.toml")]
    command += ["run", f"{mesh.url}/openapi.json", "--max-examples", "10", "--no-color", "--continue-on-failure"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=580)
    assert done.returncode == 0, done.stdout[-8000:]
