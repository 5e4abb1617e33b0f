"""Reads a case in any of its three encodings, and renders the report that answers it. No I/O.

A single file is sent raw; several files and a record as multipart/form-data, or as JSON with base64. The DApp's intake
sniffs from the bytes what a file is. File names are ignored: they often hold a patient's name. Everything here takes
time in the size of the body, so callers run it off the event loop.
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import asdict
from typing import Any
from urllib.parse import parse_qs

import orjson

from dapps import Case, ClinicalFile, DApp, Finding, Report
from dapps.knowledge.render import markdown as guideline_page
from dapps.structure import CASE_JSON, StructureRefused, check_json
from serving.errors import CallError
from serving.protocol.exchange import Response
from serving.protocol.multipart import MAX_FILES, parse_form
from serving.protocol.responses import JSON

VIEWS = ("json", "markdown", "patient", "png")
BODY = '{"file": "<base64>"}, or {"files": [{"data": "<base64>", "part": "<what it is>"}], "record": {…}}'
PRESENT = {True: "present", False: "absent", None: "unclear"}


def read_view(query: bytes) -> str:
    """The form of the report that `?view=` names.

    Raises:
        CallError: `bad_request`: there is no such form.
    """
    try:
        view = parse_qs(query.decode("latin-1"), max_num_fields=16).get("view", ["json"])[-1]
    except ValueError:
        view = ""
    if view not in VIEWS:
        raise CallError("bad_request", f"view is one of: {', '.join(VIEWS)}")
    return view


def read_case(content_type: str, body: bytes) -> Case:
    """The files and the record of a request.

    Raises:
        CallError: `bad_request`: the body cannot be read or holds nothing.
    """
    kind = content_type.partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        return _from_form(content_type, body)
    if kind == JSON or (not kind and body[:1] == b"{"):
        return _from_json(body)
    if not body:
        raise CallError("bad_request", "the body is empty: send the file")
    return Case((ClinicalFile(body),))


def _from_json(body: bytes) -> Case:
    refused = CallError("bad_request", f"the JSON body is {BODY}")
    try:
        check_json(body, CASE_JSON)
        case = orjson.loads(body)
        if not isinstance(case, dict) or not set(case) <= {"file", "files", "record"}:
            raise refused
        case = {name: value for name, value in case.items() if value is not None}
        if not case:
            raise refused
        rows = [{"data": case["file"]}] if "file" in case else case.get("files", [])
        if not isinstance(rows, list) or len(rows) > MAX_FILES or ("file" in case and "files" in case):
            raise refused
        files = tuple(_file(row) for row in rows)
        return Case(files, orjson.dumps(case["record"]) if "record" in case else None)
    except StructureRefused as error:
        raise CallError("body_too_large", f"the JSON body is too large, {error.cause}: it is {BODY}") from None
    except (ValueError, KeyError, TypeError, binascii.Error):  # their texts quote the body
        raise refused from None


def _file(row: Any) -> ClinicalFile:
    if not isinstance(row, dict) or type(row["data"]) is not str:
        raise TypeError
    part = row.get("part")
    if part is None:
        part = ""
    if not isinstance(part, str):
        raise TypeError
    return ClinicalFile(base64.b64decode(row["data"], validate=True), part=part)


def _from_form(content_type: str, body: bytes) -> Case:
    files, records = [], []
    for part in parse_form(content_type, body):
        if part.name == "record":
            records.append(bytes(part.data))
        elif part.is_file:
            files.append(ClinicalFile(bytes(part.data), part=part.name))
        else:
            raise CallError("bad_request", "a multipart body holds files, and a record in the field `record`")
    if len(records) > 1 or not (files or records):
        raise CallError("bad_request", "the multipart body holds at least one file or a record, and one record at most")
    return Case(tuple(files), records[0] if records else None)


def render(view: str, name: str, dapp: DApp, report: Report, items: int) -> Response:
    """The report as JSON, as Markdown or for the patient; the DApp itself draws a picture."""
    if view == "markdown":
        return _response(markdown(report).encode(), "text/markdown; charset=utf-8")
    if view == "patient":
        return _response(for_patient(report).encode(), "text/plain; charset=utf-8")
    return _response(orjson.dumps(report_json(name, dapp, report, items)), JSON)


def picture(png: bytes) -> Response:
    """A report's picture as a response."""
    return _response(png, "image/png")


def _response(body: bytes, kind: str) -> Response:
    return Response(200, body, {"content-type": kind, "x-intended-use": "research"})


def report_json(name: str, dapp: DApp, report: Report, items: int) -> dict[str, Any]:
    """The report as JSON, with the model that answered."""
    model = {"name": name, "version": dapp.version, "digest": dapp.digest, "release": dapp.release}
    return {"model": model, "items": items, **asdict(report)}


def markdown(report: Report) -> str:
    """The report for a doctor's file."""
    lines = ["# Report", "", report.summary, ""]
    if report.recommendation:
        lines += [f"**What to do next:** {report.recommendation}", ""]
    lines += ["| finding | answer | probability or value | interval | code | quality |", "|" + " --- |" * 6]
    lines += ["| " + " | ".join(_cells(finding)) + " |" for finding in report.findings]
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
    text = report.patient_summary or "This answer is for your doctor, who can explain it to you."
    return f"{text}\n\nThis is research. It is not a diagnosis. Please talk to your doctor about it.\n"
