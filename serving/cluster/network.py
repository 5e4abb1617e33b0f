"""Checks ports and addresses before a mesh or a node starts."""

from __future__ import annotations

import ipaddress
import socket
import time
from collections.abc import Callable
from ipaddress import IPv4Address
from urllib.parse import urlsplit

from serving.config import Settings
from serving.errors import StartError


def check_port(
    host: str, port: int, option: str, patience_s: float = 0.0, check: Callable[[], None] = lambda: None
) -> None:
    """Refuses a port that something else has, and keeps for `patience_s`: what a killed mesh left takes time to end.

    Raises:
        StartError: with the option that names another.
    """
    until = time.monotonic() + patience_s
    while True:
        check()
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
                return
            except OSError as error:
                if time.monotonic() >= until:
                    raise StartError(f"port {port} is in use: choose another {option}") from error
        time.sleep(0.1)


def check_reach(settings: Settings) -> None:
    """Refuses to open a mesh to other machines whose replicas could not reach store and ledger.

    Raises:
        StartError: store or ledger are on this machine alone.
    """
    if not settings.clustered:
        return
    store, ledger = settings.store_url.get_secret_value(), settings.ledger_url.get_secret_value()
    if not store or not ledger:
        missing = " and ".join(
            name for name, url in (("LEBEN_STORE_URL", store), ("LEBEN_LEDGER_URL", ledger)) if not url
        )
        raise StartError(
            f"a mesh that other machines join has its store and ledger by URL: set {missing}, or leave out --listen"
        )
    name = "LEBEN_REPLICA_STORE_URL" if settings.replica_store_url.get_secret_value() else "LEBEN_STORE_URL"
    host = urlsplit(settings.metering_url()).hostname or ""
    if not host or host == "localhost" or _is_loopback(host):
        raise StartError(f"{name} names this machine alone: replicas on others need its address in their network")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def address_towards(head: str, port: int) -> IPv4Address:
    """This machine's address as the head sees it; nothing is sent.

    Raises:
        StartError: there is no such host, or no way to it.
    """
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((head, port))
            return IPv4Address(probe.getsockname()[0])
    except OSError as error:
        raise StartError(f"--join {head}: {error.strerror or error}") from error
