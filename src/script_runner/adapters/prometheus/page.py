"""The page of the counts, written by Prometheus' own library."""

import re
from collections.abc import Iterable, Iterator, Sequence
from math import inf
from typing import Final

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from script_runner.adapters.prometheus.counts import Count, Times

_VERSION: Final = re.compile(r"[0-9]{1,3}(\.[0-9]{1,3}){0,2}")


def written(accept: str, counts: Iterable[Count | Times]) -> tuple[str, bytes]:
    """Media type and text of these counts, and of what this process uses."""
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    registry.register(_Counts([_family(count) for count in counts]))
    encode, media_type = choose_encoder(_known(accept))
    return media_type, encode(registry)


class _Counts(Collector):
    def __init__(self, families: Sequence[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterator[Metric]:
        return iter(self._families)


def _family(count: Count | Times) -> Metric:
    if isinstance(count, Times):
        return _histogram(count)
    kind = GaugeMetricFamily if count.falls else CounterMetricFamily
    family = kind(count.name, count.sentence, labels=count.labels)
    for labels, value in count.values.items():
        family.add_metric(labels, value)
    return family


def _histogram(times: Times) -> Metric:
    family = HistogramMetricFamily(times.name, times.sentence, labels=times.labels)
    bounds = [floatToGoString(bound) for bound in (*times.bounds, inf)]  # type: ignore[no-untyped-call]
    for labels, (counts, seconds) in times.values().items():
        family.add_metric(labels, list(zip(bounds, counts, strict=True)), seconds)
    return family


def _known(accept: str) -> str:
    """Of an Accept header what names no version, or a sane one: the library fails at others, or repeats them."""
    return ",".join(kind for kind in accept.split(",") if all(map(_is_known, kind.split(";"))))


def _is_known(parameter: str) -> bool:
    name, _, value = parameter.strip().partition("=")
    return name != "version" or _VERSION.fullmatch(value) is not None
