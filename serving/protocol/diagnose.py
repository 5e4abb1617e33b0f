"""`diagnose`: a case in any of three wrappings, and the report that answers it in any of four forms. No I/O.

One file comes raw (the body is the file); several and a record as multipart/form-data, or as JSON with base64. What a
file is, the DApp's intake sniffs from its bytes. File names are used for nothing: they often hold a patient's name.
Everything here takes time in the size of the body, so the door calls it off the event loop.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
from collections.abc import AsyncGenerator
from dataclasses import asdict
from typing import Any
from urllib.parse import parse_qs

import orjson
from starlette.datastructures import FormData, Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from dapps import Case, ClinicalFile, DApp, Finding, Report
from dapps.knowledge.render import markdown as guideline_page
from serving.errors import CallError
from serving.protocol.exchange import Request, Response

MAX_FILES = 64
VIEWS = ("json", "markdown", "patient", "png")
BODY = '{"file": "<base64>"}, or {"files": [{"data": "<base64>", "part": "<what it is>"}], "record": {…}}'
PRESENT = {True: "present", False: "absent", None: "unclear"}


def read_view(asked: Request) -> str:
    """The form that the answer shall have, from `?view=`.

    Raises:
        CallError: `bad_request` if there is no such form.
    """
    try:
        view = parse_qs(asked.query.decode("latin-1"), max_num_fields=16).get("view", ["json"])[-1]
    except ValueError:
        view = ""
    if view not in VIEWS:
        raise CallError("bad_request", f"view is one of: {', '.join(VIEWS)}")
    return view


def read_case(asked: Request) -> Case:
    """The files and the record of a request.

    Raises:
        CallError: `bad_request` if the wrapping cannot be read or holds nothing.
    """
    kind = asked.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        return asyncio.run(_multipart(asked))
    if kind == "application/json" or (not kind and asked.body[:1] == b"{"):
        return _json(asked.body)
    if not asked.body:
        raise CallError("bad_request", "the body is empty: send the file")
    return Case((ClinicalFile(asked.body),))


def _json(body: bytes) -> Case:
    refused = CallError("bad_request", f"the JSON body is {BODY}")
    try:
        found = orjson.loads(body)
        if not isinstance(found, dict) or not found or not set(found) <= {"file", "files", "record"}:
            raise refused
        rows = [{"data": found["file"]}] if "file" in found else found.get("files", [])
        if not isinstance(rows, list) or len(rows) > MAX_FILES or ("file" in found and "files" in found):
            raise refused
        files = tuple(_file(row) for row in rows)
        return Case(files, orjson.dumps(found["record"]) if "record" in found else None)
    except (ValueError, KeyError, TypeError, binascii.Error):  # their texts quote the body
        raise refused from None


def _file(row: Any) -> ClinicalFile:
    if not isinstance(row, dict) or not isinstance(part := row.get("part", ""), str) or type(row["data"]) is not str:
        raise TypeError
    return ClinicalFile(base64.b64decode(row["data"], validate=True), part=part)


class _InMemory(MultiPartParser):
    """Never writes a part to disk, where a patient's file would outlive the call."""

    spool_max_size = 1 << 40


async def _multipart(asked: Request) -> Case:
    async def stream() -> AsyncGenerator[bytes, None]:
        yield asked.body

    try:
        form = await _InMemory(Headers(dict(asked.headers)), stream(), max_files=MAX_FILES, max_fields=4).parse()
        try:
            return await _parts(form)
        finally:
            await form.close()
    except (MultiPartException, KeyError, ValueError):
        raise CallError("bad_request", "the multipart body cannot be read") from None


async def _parts(form: FormData) -> Case:
    files, records = [], []
    for name, value in form.multi_items():
        data = await value.read() if isinstance(value, UploadFile) else value.encode()
        if name == "record":
            records.append(data)
        elif isinstance(value, UploadFile):
            files.append(ClinicalFile(data, part=name))
        else:
            raise CallError("bad_request", "a multipart body holds files, and a record in the field `record`")
    if len(records) > 1 or not (files or records):
        raise CallError("bad_request", "the multipart body holds at least one file or a record, and one record at most")
    return Case(tuple(files), records[0] if records else None)


def render(view: str, name: str, dapp: DApp, report: Report, items: int) -> Response:
    """The report as JSON, Markdown or for the patient; a picture is drawn by the DApp."""
    if view == "markdown":
        return _reply(markdown(report).encode(), "text/markdown; charset=utf-8")
    if view == "patient":
        return _reply(for_patient(report).encode(), "text/plain; charset=utf-8")
    return _reply(orjson.dumps(report_json(name, dapp, report, items)), "application/json")


def picture(png: bytes) -> Response:
    """The picture of a report as an answer."""
    return _reply(png, "image/png")


def _reply(body: bytes, kind: str) -> Response:
    return Response(200, body, {"content-type": kind, "x-intended-use": "research"})


def report_json(name: str, dapp: DApp, report: Report, items: int) -> dict[str, Any]:
    """The report as JSON, with what answered it."""
    model = {"name": name, "version": dapp.version, "digest": dapp.digest, "release": dapp.release}
    return {"model": model, "items": items, **asdict(report)}


def markdown(report: Report) -> str:
    """The report for a doctor's file."""
    lines = ["# Report", "", report.summary, ""]
    if report.recommendation:
        lines += [f"**What to do next:** {report.recommendation}", ""]
    lines += ["| finding | answer | probability or value | interval | code | quality |", "|" + " --- |" * 6]
    lines += ["| " + " | ".join(_cells(each)) + " |" for each in report.findings]
    if report.quality:
        lines += ["", *(f"- {key.replace('_', ' ')}: {value:g}" for key, value in report.quality.items())]
    if report.decision is not None:
        lines += ["", guideline_page(report.decision)]
    if report.provenance is not None:
        lines += ["", *(f"- {key.replace('_', ' ')}: `{value}`" for key, value in asdict(report.provenance).items())]
    return "\n".join([*lines, "", f"*{report.notice}* Intended use: {report.intended_use}.", ""])


def _cells(finding: Finding) -> list[str]:
    number = finding.probability if finding.value is None else finding.value
    shown = "" if number is None else f"{number:.4g} {'' if finding.unit == '1' else finding.unit}".strip()
    interval = "" if finding.interval is None else "{:.3g} to {:.3g}".format(*finding.interval)
    code = "" if finding.coding is None else f"{finding.coding.system} {finding.coding.code}"
    return [finding.label, "" if finding.value is not None else PRESENT[finding.present], shown, interval, code,
            finding.quality]  # fmt: skip


def for_patient(report: Report) -> str:
    """The report in plain words, for the patient."""
    told = report.patient_summary or "This answer is for your doctor, who can explain it to you."
    return f"{told}\n\nThis is research. It is not a diagnosis. Please talk to your doctor about it.\n"
