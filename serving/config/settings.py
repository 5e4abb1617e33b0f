"""Reads every setting of a mesh from `LEBEN_…` variables or the command line; no other module reads the environment.

All ports derive from `port`, so that two meshes fit on one host. Secrets are wrapped: printing settings shows none.
"""

from __future__ import annotations

import difflib
import hashlib
import os
from ipaddress import IPv4Address
from pathlib import Path
from typing import Annotated, Literal

import orjson
from pydantic import Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from serving.config.scale import Scale
from serving.errors import StartError

PORT_SPAN = 100
LABEL = r"^[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?$"
KEY = LABEL.replace("^", r"^([A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?/)?", 1)
"""Ray's patterns of a label's value and of its name."""
LOOPBACK = IPv4Address("127.0.0.1")


class Settings(BaseSettings):
    """One mesh's settings; `docs/operate.md` has a row for each."""

    model_config = SettingsConfigDict(env_prefix="LEBEN_", frozen=True, extra="forbid")

    data: Path = Field(default=Path(".leben"), description="folder of keys, ledger, journal and store")
    port: int = Field(default=8700, ge=1024, le=65_535 - PORT_SPAN, description="HTTP port; the 99 above it are used")
    grpc_port: int = Field(default=0, ge=0, le=65_535, description="gRPC port; 0: no gRPC")
    server_name: str = Field(default="leben-mesh", description="name in the server's V2 metadata")
    model_control: Literal["none", "explicit"] = Field(
        default="none", description="explicit: whoever reaches the port may load and unload models"
    )
    trusted_dapps: Annotated[frozenset[str], NoDecode] = Field(
        default=frozenset({"chdr", "strokedr"}), description="DApps that are served, each in its replica's own process"
    )
    dapps: Annotated[frozenset[str], NoDecode] = Field(
        default=frozenset(), description="more DApps that are served, each isolated in a process without secrets"
    )
    isolation: Literal["namespaces", "landlock"] = Field(
        default="namespaces", description="what isolates DApps; landlock: less, for machines that refuse namespaces"
    )
    isolated_memory_bytes: int = Field(
        default=8 << 30, ge=0, description="most address space of an isolated process on CPU; 0: no limit"
    )
    isolated_call_s: float = Field(
        default=60.0, gt=0, description="an isolated DApp that takes longer over a step of a call is stopped"
    )
    store_url: SecretStr = Field(default=SecretStr(""), description="Redis or Valkey; empty: an embedded Valkey")
    replica_store_url: SecretStr = Field(
        default=SecretStr(""), description="the same store by a user that can meter and no more; empty: as the treasury"
    )
    ledger_url: SecretStr = Field(default=SecretStr(""), description="SQLAlchemy URL; empty: an SQLite file in `data`")
    ledger: Literal["sql", "evm"] = Field(
        default="sql", description="evm: a chain, named by `rpc_url` and by `data`/chain.json; journal stays in SQL"
    )
    rpc_url: SecretStr = Field(default=SecretStr(""), description="a node of that chain, JSON-RPC over HTTP")
    key_password: SecretStr = Field(
        default=SecretStr(""), description="encrypts new key files and opens encrypted ones"
    )
    receiver_key: SecretStr = Field(default=SecretStr(""), description="64 hex digits; empty: a file in `data`/keys")
    authorizer_key: SecretStr = Field(default=SecretStr(""), description="the same, of who signs claims and refunds")
    receipt_key: SecretStr = Field(default=SecretStr(""), description="the same, of who signs receipts")
    exposure_cap: int = Field(
        default=10_000_000, gt=0, description="atomic units a channel may owe before it is settled"
    )
    deposit_calls: int = Field(default=20, gt=0, description="calls that the suggested least deposit pays for")
    settle_interval_s: float = Field(default=300.0, gt=0, description="longest time from a charge to its claim")
    settle_amount: int = Field(default=5_000_000, gt=0, description="unsettled atomic units at which a claim is due")
    withdraw_delay_s: int = Field(default=86_400, ge=900, le=2_592_000, description="notice before a payer withdraws")
    abandoned_limit: int = Field(
        default=8, ge=1, description="calls without a key that a channel's callers may hang up on in a minute"
    )
    maximum_body_bytes: int = Field(default=64 << 20, gt=0, description="longest request body")
    scale: Annotated[dict[str, Scale], NoDecode] = Field(
        default={}, description="replicas by DApp, as JSON: least, most, calls, up_s, down_s; docs/operate.md"
    )
    cpus: int = Field(default=0, ge=0, description="CPU cores for Ray; 0: all")
    listen: IPv4Address = Field(
        default=LOOPBACK,
        description="this machine's address for the other nodes of its mesh; 127.0.0.1: one machine alone",
    )
    resources: dict[str, Annotated[float, Field(gt=0)]] = Field(
        default={}, description='what this node has that `where` asks for, as JSON: {"ct_room": 1}'
    )
    labels: dict[Annotated[str, Field(pattern=KEY)], Annotated[str, Field(pattern=LABEL)]] = Field(
        default={}, description='labels of this node that `where` asks for, as JSON: {"room": "ct"}'
    )
    place_s: float = Field(
        default=30.0, ge=1, description="longest time that a replica waits for a node that can take it"
    )
    torch_threads: int = Field(default=1, ge=0, description="torch threads of each replica on CPU; 0: torch decides")
    trace_sample: float = Field(default=0.0, ge=0, le=1, description="part of all calls that is traced; 0: none")
    trace_endpoint: str = Field(
        default="http://127.0.0.1:4318/v1/traces",
        description="where spans go, OTLP over HTTP",
    )
    remotes: dict[str, str] = Field(
        default={},
        description='where models are that other servers have: {"chdr": "http://triton:8000/v2/models/chdr"}',
    )
    remote_key: SecretStr = Field(
        default=SecretStr(""), description="hex key of the wallet that pays the meshes among LEBEN_REMOTES"
    )
    gpu_shares: dict[str, float] = Field(
        default={}, description='part of a GPU that each replica of a DApp reserves, as JSON: {"chdr": 0.25}; else 0.4'
    )
    levers: Annotated[frozenset[str] | None, NoDecode] = Field(
        default=None, description="levers of the runner, docs/performance.md; unset: those that win on the device"
    )

    @field_validator("trusted_dapps", "dapps", "levers", mode="before")
    @classmethod
    def _names(cls, raw: object) -> object:
        if not isinstance(raw, str):
            return raw
        plain = raw.strip().removeprefix("[").removesuffix("]")
        return frozenset(name.strip().strip("\"'") for name in plain.split(",") if name.strip())

    @field_validator("listen")
    @classmethod
    def _one_address(cls, address: IPv4Address) -> IPv4Address:
        if address.is_unspecified or address.is_multicast or (address.is_loopback and address != LOOPBACK):
            raise ValueError("it is the one address at which other machines reach this one, such as 10.0.0.5")
        return address

    @field_validator("gpu_shares")
    @classmethod
    def _shares(cls, shares: dict[str, float]) -> dict[str, float]:
        if not all(0 < share <= 1 or (share > 1 and share.is_integer()) for share in shares.values()):
            raise ValueError("a share is above 0 and at most 1, or a whole number of GPUs")
        return shares

    @field_validator("scale", mode="before")
    @classmethod
    def _json(cls, raw: object) -> object:
        if not isinstance(raw, str):
            return raw
        try:
            return orjson.loads(raw or "{}")
        except ValueError as error:
            raise ValueError("it is JSON, DApps and what each is given") from error

    @staticmethod
    def unknown() -> list[str]:
        """Variables that look like settings and are none."""
        return sorted(name for name in os.environ if name.startswith("LEBEN_") and name[6:].lower() not in _KNOWN)

    def check_environment(self) -> None:
        """Refuses variables that look like settings: a mesh would run without what its operator asked for.

        Raises:
            StartError: naming each, and what may have been meant.
        """
        if wrong := self.unknown():
            names = []
            for name in wrong:
                meant = difflib.get_close_matches(name[6:].lower(), _KNOWN, n=1)
                names.append(name + (f" (LEBEN_{meant[0].upper()}?)" if meant else ""))
            raise StartError(f"no such setting: {', '.join(names)}: unset it; docs/operate.md has them all")

    @property
    def url(self) -> str:
        """Where the mesh answers."""
        return f"http://{self.listen}:{self.port}"

    @property
    def ready_line(self) -> str:
        """What `leben up` prints once every DApp has answered."""
        return f"ready {self.url}" + (f" grpc://{self.listen}:{self.grpc_port}" if self.grpc_port else "")

    @property
    def clustered(self) -> bool:
        """True if other machines may join: then whoever reaches this one may call it."""
        return self.listen != LOOPBACK

    @property
    def bind(self) -> str:
        """What proxies and replicas bind.

        Serve takes one address for all nodes, and a proxy reaches its own node's replicas on loopback, those of others
        at their address: only every interface is both.
        """
        return "0.0.0.0" if self.clustered else str(LOOPBACK)  # noqa: S104 - asked for by `listen`, with a warning

    @property
    def dashboard_port(self) -> int:
        """Port of Ray's dashboard."""
        return self.port + 3

    @property
    def metrics_port(self) -> int:
        """Port on which this node's metrics are read."""
        return self.port + 4

    @property
    def join_port(self) -> int:
        """Port of Ray on the head, which other nodes join."""
        return self.port + 6

    @property
    def own_ports(self) -> dict[int, str]:
        """Ports beside the HTTP port that are taken at the start, and what for; replicas find theirs themselves."""
        names = ("HAProxy's statistics", "HAProxy's metrics", "Ray's dashboard", "metrics")
        ports = {self.port + above: name for above, name in enumerate(names, start=1)}
        return ports | ({self.join_port: "nodes that join"} if self.clustered else {})

    @property
    def home(self) -> Path:
        """The data folder, absolute."""
        return self.data.expanduser().resolve()

    @property
    def keys(self) -> Path:
        """Folder of the mesh's private keys."""
        return self.home / "keys"

    @property
    def ray_token(self) -> Path:
        """The token of Ray's dashboard and ports."""
        return self.keys / "ray.token"

    @property
    def chain_file(self) -> Path:
        """Which chain the mesh settles on."""
        return self.home / "chain.json"

    @property
    def audit(self) -> Path:
        """Folder of the audit log."""
        return self.home / "audit"

    @property
    def packages(self) -> Path:
        """Folder of unpacked DApps: beside the data folder, which an isolated DApp never sees."""
        return self.home.with_name(f"{self.home.name}-packages")

    @property
    def runtime(self) -> Path:
        """A private folder for sockets, the same for the same data folder.

        Short, and not under TMPDIR: HAProxy's socket paths end at 97 characters, of which Ray takes 70.
        """
        name = hashlib.sha256(f"{os.getuid()}:{self.home}".encode()).hexdigest()[:10]
        return Path("/tmp") / f"leben-{name}"  # noqa: S108 - made private, or refused, by embedded.private_folder

    def forget_secrets(self) -> None:
        """Takes the secrets out of this process's environment, so that none that it starts has them."""
        secret = {f"leben_{name}" for name, field in type(self).model_fields.items() if field.annotation is SecretStr}
        for name in [name for name in os.environ if name.lower() in secret]:
            del os.environ[name]

    def sql_url(self) -> str:
        """The ledger's and journal's database."""
        from channels.sql import sqlite_url  # SQLAlchemy takes long to import, and a payer's install has none

        return self.ledger_url.get_secret_value() or sqlite_url(self.home / "ledger.db")

    def redis_url(self) -> str:
        """The store."""
        return self.store_url.get_secret_value() or f"unix://{self.runtime / 'valkey.sock'}"

    def metering_url(self) -> str:
        """The store as replicas reach it: whoever takes one over can then not empty the journal."""
        return self.replica_store_url.get_secret_value() or self.redis_url()


_KNOWN = frozenset(Settings.model_fields)
