"""Bounded, careful readers of clinical files: bytes in, physical units out, or a refusal that names the cause.

They know formats, never models. Every way in which a file can be wrong ends in `IntakeRefused`; no message carries a
value of the file. Read `dapps/intake/wav.py` first, `dapps/intake/dicom.py` for the harder one.
"""
