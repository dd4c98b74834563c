"""Choose how the next list is requested: as a stream or in pages, from which storage, how large."""

from __future__ import annotations

PAGE_SIZE = 500
"""Objects per page of a list, as in kubectl and client-go."""

STREAMS_TRIED = 2
"""Streaming lists that may stay incomplete before pages are used."""


class ListMode:
    """The form of the next list of one kind, by the results of those before. Not thread-safe."""

    def __init__(self) -> None:
        self.streaming = True
        self._incomplete_streams = 0
        self._paged = True
        self._from_cache = True
        self._page_size = PAGE_SIZE

    def first_page(self) -> dict[str, str]:
        """Return the query of the first page.

        resourceVersion=0 lets the server respond from its cache, possibly with all objects in one
        page.
        """
        return self._limit() | ({"resourceVersion": "0"} if self._from_cache else {})

    def next_page(self, token: str) -> dict[str, str]:
        """Return the query of the page after the one that contained this token.

        The token contains the version of the first page, so all pages are of one version.
        """
        return self._limit() | {"continue": token}

    def stream_began(self) -> None:
        """Note that a streaming list begins; until it is complete it counts as incomplete."""
        self._incomplete_streams += 1
        if self._incomplete_streams >= STREAMS_TRIED:
            self.streaming = False

    def stream_completed(self) -> None:
        """Note the closing bookmark of a streaming list."""
        self.streaming, self._incomplete_streams = True, 0

    def completed(self) -> None:
        """Note that a list is complete."""
        self._paged = self._from_cache = True

    def require_newest(self) -> None:
        """Ask for the newest state: the server's cache may be older than the lost version."""
        self._from_cache = False

    def token_expired(self, query: dict[str, str]) -> None:
        """Note a 410 in a list.

        If it was for a continue token, paging is too slow for the server's history, and the next
        list is requested without pages.
        """
        self._paged = "continue" not in query

    def page_too_large(self) -> None:
        """Request smaller pages for good.

        The server's cache may ignore the limit, so the storage is asked first. An expired token
        does not matter more than a page that does not fit.
        """
        if not (self._from_cache and self._paged):
            self._page_size = max(1, self._page_size // 2)
        self._paged, self._from_cache = True, False

    def _limit(self) -> dict[str, str]:
        return {"limit": str(self._page_size)} if self._paged else {}
