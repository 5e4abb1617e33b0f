"""The rules that a DApp is held to, a noun a file; `dapps/testing.py` runs them in their order.

Nothing here knows a server: the same rules are run by an author's tests, by `leben dapp check`, and on the mesh's own.
"""
