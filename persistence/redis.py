"""The cache store under the names that it had in Powertools before Valkey."""

from __future__ import annotations

from persistence.cache import CacheClientProtocol as RedisClientProtocol
from persistence.cache import CacheConnection as RedisConnection
from persistence.cache import CachePersistenceLayer
from persistence.cache import CachePersistenceLayer as RedisCachePersistenceLayer

__all__ = ["CachePersistenceLayer", "RedisCachePersistenceLayer", "RedisClientProtocol", "RedisConnection"]
