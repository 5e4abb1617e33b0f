"""Runs a stranger's DApp in a child process without secrets and validates each of its answers.

May import treasury, execution, control and the floors below. Exports nothing: the child imports `child` and `messages`,
which load `dapps`, device and tensors alone; other rooms import `dapp`, `runner` and `spec`.
"""
