"""The queue of waiting completions: clients take turns, and so do the requests of a client."""

import collections
from collections.abc import Hashable, Iterator, Mapping
from typing import Generic, NamedTuple, Protocol, TypeVar


class Owner(NamedTuple):
    """Who waits for a completion. Completions of one owner run in order of arrival."""

    client: Hashable = None
    request: Hashable = None


ANYONE = Owner()


class Owned(Protocol):
    """What can wait in a FairQueue."""

    id: int
    owner: Owner


T = TypeVar("T", bound=Owned)


class FairQueue(Generic[T]):
    """A queue whose next item is of the client that has the fewest running.

    Among equals clients take turns, then the requests of the client; a request's items keep their
    order. With one owner this is first in, first out.
    """

    def __init__(self):
        # Whoever had a turn moves to the end of its dictionary.
        self._clients: dict[Hashable, dict[Hashable, collections.deque[T]]] = {}

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __bool__(self) -> bool:
        return bool(self._clients)

    def __iter__(self) -> Iterator[T]:
        for requests in self._clients.values():
            for items in requests.values():
                yield from items

    def append(self, item: T) -> None:
        self._items(item.owner).append(item)

    def appendleft(self, item: T) -> None:
        """Puts an item before the others of its owner."""
        self._items(item.owner).appendleft(item)

    def first(self, running: Mapping[Hashable, int]) -> T:
        """Returns the next item; `running` is the number of running items by client."""
        client = min(self._clients, key=lambda client: running.get(client, 0))
        return next(iter(self._clients[client].values()))[0]

    def take(self, item: T) -> None:
        """Removes an item that had its turn."""
        client, request = item.owner
        requests = self._clients.pop(client)
        items = requests.pop(request)
        items.remove(item)
        if items:
            requests[request] = items
        if requests:
            self._clients[client] = requests

    def remove(self, item_id: int) -> T | None:
        """Removes and returns an item that was withdrawn; None if it does not wait."""
        for client, requests in self._clients.items():
            for request, items in requests.items():
                for item in items:
                    if item.id == item_id:
                        items.remove(item)
                        if not items:
                            del requests[request]
                        if not requests:
                            del self._clients[client]
                        return item
        return None

    def _items(self, owner: Owner) -> collections.deque[T]:
        return self._clients.setdefault(owner.client, {}).setdefault(
            owner.request, collections.deque()
        )
