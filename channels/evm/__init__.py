"""Settles channels on an Ethereum chain: the ledger engine, its contracts and the transactions that call them.

May import every room of `channels` but settlement. It exports nothing here: all modules but `chain_file` load web3,
which only a mesh on a chain needs, so other rooms import them by name.
"""
