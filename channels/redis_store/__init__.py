"""Keeps holds and charges in Redis or Valkey; each step is one atomic Lua script.

May import metering, receipts, protocol and errors.
"""

from channels.redis_store.store import RedisStore

__all__ = ["RedisStore"]
