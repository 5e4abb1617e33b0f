"""The `leben` command, one module for each group of commands.

May import every room. Each command imports what it needs when it runs, so that `leben` starts fast.
"""
