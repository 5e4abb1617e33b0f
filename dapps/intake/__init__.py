"""Reads clinical files within bounds: bytes in, physical units out, or a refusal that names the cause.

May import api and knowledge. Readers know formats, never models; every fault of a file ends in `IntakeRefused`, and no
message carries a value of the file. Import a format's module (`wav`, `dicom`, `series` …): each loads its own decoder.
"""
