"""A queue of objects to look at: each is in it once, and comes back later after a failure."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import NamedTuple

import aiohttp

from pyproxy_lab.failures import FailureLog
from pyproxy_lab.reflector import FIRST_PAUSE, LONGEST_PAUSE, RequestError

log = logging.getLogger(__name__)


class Key(NamedTuple):
    """An object to look at: its resource, namespace and name."""

    plural: str
    namespace: str
    name: str


class WorkQueue:
    """Belongs to one event loop. Its size is bounded by the number of objects."""

    def __init__(self) -> None:
        self._due: dict[Key, None] = {}
        self._later: dict[Key, tuple[float, asyncio.TimerHandle]] = {}
        self._pauses: dict[Key, float] = {}
        self._failures = FailureLog()
        self._wake = asyncio.Event()

    def add(self, key: Key) -> None:
        """Look at an object as soon as possible."""
        self._due.setdefault(key)
        self._wake.set()

    def add_later(self, key: Key, seconds: float) -> None:
        """Look at an object in a while; the earlier one of two times counts."""
        loop = asyncio.get_running_loop()
        when = loop.time() + seconds
        if (before := self._later.get(key)) is not None:
            if before[0] <= when:
                return
            before[1].cancel()
        self._later[key] = (when, loop.call_at(when, self._ripen, key))

    def retry(self, key: Key) -> None:
        """Look at an object again after a failure, each time after a longer pause."""
        pause = self._pauses.get(key, FIRST_PAUSE)
        self._pauses[key] = min(pause * 2, LONGEST_PAUSE)
        self.add_later(key, pause)

    def succeeded(self, key: Key) -> None:
        """Forget the failures of an object."""
        self._pauses.pop(key, None)

    async def next(self) -> Key:
        """Wait for an object, and take it out."""
        while not self._due:
            self._wake.clear()
            await self._wake.wait()
        key = next(iter(self._due))
        del self._due[key]
        return key

    async def process(self, work: Callable[[Key], Awaitable[float | None]]) -> None:
        """Work on one object after the other until cancelled.

        `work` returns the seconds after which the object is looked at again, or None. An object
        whose work raises is tried again, and stops no other.
        """
        while True:
            key = await self.next()
            unexpected = f"cannot reconcile {key.plural} {key.namespace}/{key.name}: trying again"
            try:
                again = await work(key)
            except (RequestError, aiohttp.ClientError) as error:
                log.debug("%s %s/%s: %s: trying again", *key, error)
                self.retry(key)
            except Exception:
                self._failures.report(unexpected)
                self.retry(key)
            else:
                self._failures.forget(unexpected)
                self.succeeded(key)
                if again:
                    self.add_later(key, again)

    def _ripen(self, key: Key) -> None:
        self._later.pop(key, None)
        self.add(key)
