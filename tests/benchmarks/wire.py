"""One patch of a volume, 96³ in FP32, there and back by the stock `tritonclient`: binary tensors beside JSON.

Many integrations send JSON because it is the client's first example. Both sides meet the same door, unmetered, whose
model gives the patch back; what is measured is a whole round trip, the client's encoding and decoding included.
`make bench` runs it.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from _ring import CHAIN, MESH, QUOTE, SHARES, Echo, Open, show, spread
from rich.table import Table

from channels.metering.memory_store import MemoryStore
from channels.metering.meter import Meter
from serving.execution.batcher import Batcher
from serving.replica import Door, LiveOffer, Offer

PORT, ROUNDS, BINARY_CALLS = 18_870, 5, 20
SIDE = 96
PATH = "v2/models/echo"


def serve() -> None:
    """The door, on uvicorn."""
    import uvicorn
    from starlette.applications import Starlette
    from starlette.routing import Mount

    dapp = Echo("FP32", (SIDE, SIDE, SIDE), SIDE**3)
    paywall = Open(LiveOffer(Offer.of("echo", dapp, QUOTE, SHARES)), Meter(MemoryStore(1), MESH, CHAIN), MESH)
    door = Door(paywall, Batcher(dapp, 1), maximum_body_bytes=64 << 20).app()
    app = Starlette(routes=[Mount(f"/{PATH}", door)])
    uvicorn.run(app, port=PORT, log_level="error", loop="uvloop", http="httptools", lifespan="off")


def round_trip(client: Any, patch: np.ndarray, binary: bool) -> float:
    """Milliseconds from an array to the array that came back, which is compared."""
    from tritonclient.http import InferInput, InferRequestedOutput

    start_s = time.perf_counter()
    tensor = InferInput("X", list(patch.shape), "FP32")
    tensor.set_data_from_numpy(patch, binary_data=binary)
    outputs = [InferRequestedOutput("Y", binary_data=binary)]
    back = client.infer("echo", [tensor], outputs=outputs).as_numpy("Y")
    took_ms = (time.perf_counter() - start_s) * 1000
    if not np.array_equal(back.ravel(), patch.ravel()):
        raise RuntimeError("another patch came back")
    return took_ms


def main() -> None:
    """Measures and prints the table."""
    from tritonclient.http import InferenceServerClient

    patch = np.random.default_rng(0).standard_normal((1, SIDE, SIDE, SIDE), dtype="f4")
    process = subprocess.Popen([sys.executable, str(Path(__file__)), "serve"])
    client = InferenceServerClient(f"127.0.0.1:{PORT}", network_timeout=120, connection_timeout=120)
    try:
        for _ in range(300):
            try:
                if client.is_model_ready("echo"):
                    break
            except OSError:
                time.sleep(0.1)
        rows = []
        round_trip(client, patch, binary=True)
        for _ in range(ROUNDS):
            fast = statistics.median(round_trip(client, patch, binary=True) for _ in range(BINARY_CALLS))
            rows.append((fast, round_trip(client, patch, binary=False)))
    finally:
        client.close()
        process.terminate()
        process.wait(timeout=30)
    table = Table("binary, ms", "JSON, ms", "JSON/binary", "bar", title="a patch of 96³ FP32 (3.5 MB), there and back")
    table.add_row(
        spread((fast for fast, _ in rows), 1),
        spread((slow for _, slow in rows), 0),
        spread((slow / fast for fast, slow in rows), 0),
        "50",
    )
    show(table)


if __name__ == "__main__":
    serve() if sys.argv[-1] == "serve" else main()
