"""Writes runnable code that calls a DApp: with curl, httpx and a stock tritonclient.

Names in the catalogue are an author's: each is written as a literal, so that none becomes code.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dapps.api import DTYPES

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Snippet:
    """One way to call: its title, a note, and the code."""

    title: str
    note: str
    code: str


def all_of(url: str, row: Json) -> list[Snippet]:
    """The ways to call one DApp.

    Args:
        url: of the mesh.
        row: the DApp's row of the catalogue.
    """
    return [_curl(url, row), _httpx(url, row), _triton(url, row)]


def free(row: Json) -> bool:
    """True if the DApp is free."""
    return bool(row["price"]["maximum"] == "0")


def _route(url: str, row: Json) -> str:
    return f"{url}/v2/models/{row['name']}/{'diagnose' if row['diagnose'] else 'infer'}"


def _curl(url: str, row: Json) -> Snippet:
    note = "The answer." if free(row) else "The quote: curl cannot sign, so the answer is 402 with what a call costs."
    lines = [
        f"leben dapp example {row['name']} --out body.json",
        f"curl -i -H 'content-type: application/json' --data @body.json {_route(url, row)}",
    ]
    return Snippet("curl", note, "\n".join(lines))


def _httpx(url: str, row: Json) -> Snippet:
    note = "Pays for the call. A payer with 1.00: leben wallet fund $(leben wallet new payer.key) 1000000"
    payment, receipt = 'auth=ChannelAuth(Wallet.from_file("payer.key")), ', '"charged", receipt(answer).receipt.amount'
    lines = [
        "import asyncio, httpx",
        *([] if free(row) else ["from channels.payer import ChannelAuth, Wallet, receipt"]),
        "",
        "async def main():",
        '    body = open("body.json", "rb").read()  # see curl',
        f"    async with httpx.AsyncClient({'' if free(row) else payment}timeout=60) as client:",
        f'        answer = await client.post("{_route(url, row)}", content=body,',
        '                                   headers={"content-type": "application/json"})',
        f"    print(answer.json(){'' if free(row) else ', ' + receipt})",
        "",
        "asyncio.run(main())",
    ]
    return Snippet("httpx", "Calls it." if free(row) else note, "\n".join(lines))


def _triton(url: str, row: Json) -> Snippet:
    inputs = [tensor for tensor in row["inputs"] if not tensor["optional"]] or row["inputs"][:1]
    lines = [
        "import numpy as np",
        "from tritonclient.http import InferenceServerClient, InferInput",
        *([] if free(row) else ["from channels.payer import TritonPayment, Wallet"]),
        "",
        f"client = InferenceServerClient({url.partition('://')[2]!r})",
    ]
    if not free(row):
        lines += ['payment = TritonPayment(Wallet.from_file("payer.key"))', "payment.attach(client)"]
    lines.append("tensors = []")
    for tensor in inputs:
        sizes = [1, *(abs(size) for size in tensor["shape"][1:])]
        lines += [
            f"tensors.append(InferInput({tensor['name']!r}, {sizes}, {tensor['datatype']!r}))",
            f"tensors[-1].set_data_from_numpy({_values(tensor['datatype'], sizes)})",
        ]
    lines.append(f"answer = client.infer({row['name']!r}, tensors)")
    for tensor in row["outputs"][:1]:
        lines.append(f"print(answer.as_numpy({tensor['name']!r}))")
    note = "Tensors of zeros, to show the shapes." if free(row) else "Pays in two lines. Zeros, to show the shapes."
    return Snippet("tritonclient", note, "\n".join(lines))


def _values(datatype: str, sizes: list[int]) -> str:
    if datatype == "BYTES":
        return f'np.full({sizes}, b"", dtype=object)'
    # numpy has no BF16: the client takes FP32 for it.
    name = "float32" if datatype == "BF16" else DTYPES[datatype].name
    return f'np.zeros({sizes}, dtype="{name}")'
