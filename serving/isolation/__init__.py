"""Runs a stranger's DApp in a child process without secrets, and believes none of its answers.

May import treasury, execution, control and the floors below. It exports nothing here: the child's own process imports
`child` and `messages`, which load `dapps`, device and tensors alone; other rooms import `dapp`, `runner` and `spec`.
"""
