"""Remembers the configs of channels by their ids: the chain keeps only the ids."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from channels.protocol import ChannelConfig, channel_id

Lookup = Callable[[str], ChannelConfig | None]


class Configs:
    """Channel configs by channel id.

    Args:
        chain_id: of the chain whose channels these are.
        lookup: a config by id from the journal, for a channel that another process has opened.
        configs: of all channels of the journal.
    """

    def __init__(
        self, chain_id: int, lookup: Lookup = lambda name: None, configs: Iterable[ChannelConfig] = ()
    ) -> None:
        self._chain_id, self._lookup = chain_id, lookup
        self._configs = {channel_id(chain_id, config): config for config in configs}

    def get(self, name: str) -> ChannelConfig | None:
        """The config of a channel, or None if nobody knows the id."""
        config = self._configs.get(name) or self._lookup(name)
        if config is not None:
            self._configs[name] = config
        return config

    def add(self, config: ChannelConfig) -> str:
        """Remembers a config; returns its channel's id."""
        name = channel_id(self._chain_id, config)
        self._configs[name] = config
        return name

    def __contains__(self, name: object) -> bool:
        return name in self._configs

    def __iter__(self) -> Iterator[str]:
        return iter(list(self._configs))
