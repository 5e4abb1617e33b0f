"""Keeps holds and charges in Redis or Valkey, one Lua script for each step.

May import metering, receipts, protocol and errors.
"""

from channels.redis_store.store import RedisStore

__all__ = ["RedisStore"]
