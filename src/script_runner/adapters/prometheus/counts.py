"""The counts of a process: numbers by their labels, to which one thread adds at next to no cost."""

from bisect import bisect_left
from dataclasses import dataclass, field
from itertools import accumulate

Labels = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Count:
    """How often something happened, for each combination of labels; if it ``falls`` too, how much there is."""

    name: str
    sentence: str
    labels: Labels = ()
    falls: bool = False
    values: dict[Labels, float] = field(default_factory=dict)

    def add(self, *labels: str, more: float = 1.0) -> None:
        self.values[labels] = self.values.get(labels, 0.0) + more


@dataclass(frozen=True, slots=True)
class Times:
    """How long something took, in seconds: how often at most each bound, and the sum."""

    name: str
    sentence: str
    bounds: tuple[float, ...]
    labels: Labels = ()
    _seen: dict[Labels, list[int]] = field(default_factory=dict)
    _sums: dict[Labels, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.labels:  # it is told even before the first
            self._seen[()], self._sums[()] = [0] * (len(self.bounds) + 1), 0.0

    def add(self, *labels: str, seconds: float) -> None:
        if labels not in self._seen:
            self._seen[labels] = [0] * (len(self.bounds) + 1)
        self._seen[labels][bisect_left(self.bounds, seconds)] += 1
        self._sums[labels] = self._sums.get(labels, 0.0) + seconds

    def values(self) -> dict[Labels, tuple[list[int], float]]:
        """By labels: how often it took at most each bound, at last however long, and the sum."""
        return {labels: (list(accumulate(seen)), self._sums[labels]) for labels, seen in self._seen.items()}
