"""Declares every JSON request and answer of a mesh as a pydantic model, one class a noun.

The routes of the control application build their answers from these classes and `openapi.py` generates the OpenAPI page
from them, so that the two cannot differ. What replicas answer is declared here for the page alone.
"""
