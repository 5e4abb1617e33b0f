"""`diagnose`: one clinical file in any of three wrappings, and the report that answers it. No I/O.

A file comes raw (the body is the file), as multipart/form-data, or as JSON with base64; what it is, the DApp's intake
sniffs from its bytes. File names are used for nothing: they often hold a patient's name. Next: `dapps/api.py`.
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import asdict
from typing import Any

import orjson
from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from dapps import ClinicalFile, DApp, Report
from serving.errors import CallError
from serving.paywall import Asked


async def clinical_file(asked: Asked) -> ClinicalFile:
    """The one file of a request.

    Raises:
        CallError: `bad_request` if the wrapping cannot be read or holds no file, or more than one.
    """
    kind = asked.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        return await _multipart(asked)
    if kind == "application/json" or (not kind and asked.body[:1] == b"{"):
        return _json(asked.body)
    if not asked.body:
        raise CallError("bad_request", "the body is empty: send the file")
    return ClinicalFile(asked.body)


def _json(body: bytes) -> ClinicalFile:
    try:
        data = orjson.loads(body)
        return ClinicalFile(base64.b64decode(data["file"], validate=True))
    except (ValueError, KeyError, TypeError, binascii.Error) as error:
        raise CallError("bad_request", 'the JSON body is {"file": "<base64 of the clinical file>"}') from error


async def _multipart(asked: Asked) -> ClinicalFile:
    async def stream() -> Any:
        yield asked.body

    try:
        parser = MultiPartParser(Headers(dict(asked.headers)), stream(), max_files=1, max_fields=16)
        form = await parser.parse()
        try:
            uploads = [value for value in form.values() if isinstance(value, UploadFile)]
            if len(uploads) == 1:
                return ClinicalFile(await uploads[0].read())
        finally:
            await form.close()
    except (MultiPartException, KeyError, ValueError) as error:
        raise CallError("bad_request", "the multipart body cannot be read") from error
    raise CallError("bad_request", "the multipart body holds exactly one file")


def report_json(name: str, dapp: DApp, report: Report, items: int) -> dict[str, Any]:
    """The report as JSON, with what answered it."""
    model = {"name": name, "version": dapp.version, "digest": dapp.digest, "release": dapp.release}
    return {"model": model, "items": items, **asdict(report)}
