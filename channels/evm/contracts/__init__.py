"""Holds the settlement contracts in Vyper and their compiled code."""
