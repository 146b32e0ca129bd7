"""A cache of values per language, limited in memory."""

from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

Value = TypeVar("Value")


class LanguageCache(Generic[Value]):
    """Values of equal size per language; if they would exceed the limit, the least recently used one is dropped.

    Args:
      max_bytes: Memory of all values; one value is always kept.
      size_of: Returns the bytes of a value.
    """

    def __init__(self, max_bytes: float, size_of: Callable[[Value], int]) -> None:
        self.max_bytes = max_bytes
        self._size_of = size_of
        self._values: OrderedDict[str, Value] = OrderedDict()

    @property
    def languages(self) -> list[str]:
        """Languages of the values, the most recently used one last."""
        return list(self._values)

    def get(self, language: str, create: Callable[[], Value]) -> Value:
        """Return the value of a language; if it is not cached, make room for it and create it."""
        if language not in self._values:
            self._make_room()
            self._values[language] = create()
        self._values.move_to_end(language)
        return self._values[language]

    def clear(self) -> None:
        """Drop all values."""
        self._values.clear()

    def _make_room(self) -> None:
        """Drop values until another one fits."""
        while self._values:
            size = self._size_of(next(iter(self._values.values())))
            if size * (len(self._values) + 1) <= self.max_bytes:
                return
            self._values.popitem(last=False)
