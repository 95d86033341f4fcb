"""Gauges: everything that this process measures, by name. Whoever counts something imports its name from here.

One registry of ours holds them all; the admin port (process/admin.py) shows it. What stands here is
- counted where it happens: Counter, or where it happens often Tally and Timing, which take a tenth of its time. All
  are for a batch, a connection or a request, never for an event
- read at the scrape: Reading. Whoever knows the figure gives it a `source`; without one, or while the source does not
  know, the name is absent, which an alert can tell from 0

Labels have few values, whatever callers send. No user, stream, key, token or session is ever one. A `tenant` is one of
the first MOST_TENANTS that this process meets, else `other`: who causes most is met first, and a counter that moved
from one label to another would look like a restart of both. A `model` is one that the operator has configured.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import accumulate

from prometheus_client import (
    CollectorRegistry,
    Counter,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

MOST_TENANTS = 50
"""A tenant is a series of each counter that has the label, in each process, for as long as Prometheus keeps it."""

OTHER = "other"

REGISTRY = CollectorRegistry()

FAST = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
SLOW = (0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
LONG = (1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0, 14400.0)

Known = float | Mapping[str, float] | None
"""What a Reading's source gives: the figure; of one with a label, value of the label → figure; None: not known now."""


class Reading(Collector):
    """A figure that is asked for at the scrape, in a thread: a source only looks, and never waits."""

    def __init__(self, name: str, documentation: str, label: str = "", *, is_counter: bool = False) -> None:
        self.source: Callable[[], Known] | None = None
        self._name = name
        self._documentation = documentation
        self._labels = [label] if label else None
        self._family = CounterMetricFamily if is_counter else GaugeMetricFamily
        REGISTRY.register(self)

    def describe(self) -> Iterable[Metric]:
        yield self._family(self._name, self._documentation, labels=self._labels)

    def collect(self) -> Iterator[Metric]:
        known = self.source() if self.source else None
        if known is None:
            return
        family = self._family(self._name, self._documentation, labels=self._labels or ())
        for value, figure in dict(known).items() if isinstance(known, Mapping) else [(None, known)]:
            family.add_metric([] if value is None else [value], figure)
        yield family


class Timing(Collector):
    """A histogram, of s. Plain lists, without a lock: the event loop's thread alone observes."""

    def __init__(self, name: str, documentation: str, buckets: Sequence[float], label: str = "") -> None:
        self._name = name
        self._documentation = documentation
        self._labels = [label] if label else None
        self._buckets = buckets
        self._counts: dict[str, list[int]] = {}
        self._sums: dict[str, float] = {}
        if not label:
            self._begin("")
        REGISTRY.register(self)

    def observe(self, seconds: float, label: str = "") -> None:
        if label not in self._counts:
            self._begin(label)
        self._counts[label][bisect_left(self._buckets, seconds)] += 1
        self._sums[label] += seconds

    def _begin(self, label: str) -> None:
        self._sums[label] = 0.0
        self._counts[label] = [0] * (len(self._buckets) + 1)

    def describe(self) -> Iterable[Metric]:
        yield HistogramMetricFamily(self._name, self._documentation, labels=self._labels)

    def collect(self) -> Iterator[Metric]:
        family = HistogramMetricFamily(self._name, self._documentation, labels=self._labels or ())
        limits = [*map(str, self._buckets), "+Inf"]
        for label, counts in self._counts.copy().items():
            below = zip(limits, accumulate(counts), strict=True)
            family.add_metric([label] if self._labels else [], list(below), self._sums[label])
        yield family


class Tally:
    """A counter without labels, for what happens often in the event loop's thread."""

    def __init__(self, name: str, documentation: str) -> None:
        self.count = 0
        Reading(name, documentation, is_counter=True).source = lambda: self.count

    def inc(self, by: int = 1) -> None:
        self.count += by


def _counter(name: str, documentation: str, *labels: str) -> Counter:
    return Counter(f"lastevent_{name}", documentation, labels, registry=REGISTRY)


def _tally(name: str, documentation: str) -> Tally:
    return Tally(f"lastevent_{name}", documentation)


def _timing(name: str, documentation: str, label: str = "", *, buckets: Sequence[float] = FAST) -> Timing:
    return Timing(f"lastevent_{name}", documentation, buckets, label)


def _reading(name: str, documentation: str, label: str = "") -> Reading:
    return Reading(f"lastevent_{name}", documentation, label)


def _total(name: str, documentation: str, label: str = "") -> Reading:
    return Reading(f"lastevent_{name}", documentation, label, is_counter=True)


disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series for each counter, which nobody asks for
ProcessCollector(registry=REGISTRY)

# -- of a web process: requests ------------------------------------------------------------------------------

http_requests = _counter(
    "http_requests_total", "Requests answered, by route template, method and status", "route", "method", "status"
)
http_request_seconds = _timing(
    "http_request_seconds", "s from a request's head to the last byte of its answer; streams are not in it", "route"
)
connections = _reading("connections", "Connections that are open, idle ones too")
connections_refused = _total("connections_refused_total", "Connections closed before any route saw them", "reason")
auth_failures = _counter("auth_failures_total", "Answers 401 and 403, by code", "reason")
limited = _counter("limited_total", "What a limit refused, or with LASTEVENT_LIMITS=observe would have", "limit")

# -- of a web process: viewers -------------------------------------------------------------------------------

viewers = _reading("viewers", "Viewers that are connected, by the form of what they are sent", "format")
viewers_ended = _total("viewers_ended_total", "Viewers that ended, by how", "how")
viewers_lagging = _reading("viewers_lagging", "Viewers whose connection takes no more just now")
viewer_seconds = _timing("viewer_seconds", "s from a viewer's first byte until it ended", buckets=LONG)
connects = _counter("connects_total", "Viewers that began, by where their first events came from", "from")
replayed_events = _tally("replayed_events_total", "Events read from the log or the archive for viewers")
gaps = _counter("gaps_total", "Viewers told that events are lost, by why", "reason")
first_byte_seconds = _timing("first_byte_seconds", "s from a viewer's request to its first byte")
delivery_seconds = _timing(
    "delivery_seconds", "s from Redis' stamp of an event until it was written to its viewers; one batch in 100"
)
sent_events = _total("sent_events_total", "Events written to viewers", "tenant")
sent_bytes = _total("sent_bytes_total", "Bytes of events written to viewers", "tenant")
topics = _reading("topics", "Streams that this process is subscribed to")
hub_connected = _reading("hub_connected", "1 while the subscription to Redis holds, else 0")
view_records_waiting = _reading("view_records_waiting", "Records of viewers that Redis does not have yet")
view_records_lost = _total("view_records_lost_total", "Records of viewers that were never written")

# -- of every process ----------------------------------------------------------------------------------------

loop_lag_seconds = _timing("loop_lag_seconds", "s that the event loop came late; looked at twice a second")
redis_seconds = _timing("redis_seconds", "s of a command, or of a pipeline, until Redis had answered", "command")
redis_errors = _counter("redis_errors_total", "Commands that failed: Redis was away, or refused", "kind")

# -- of a worker ---------------------------------------------------------------------------------------------

generations_running = _reading("generations_running", "Generations and agents' runs that this worker holds")
queue_wait_seconds = _timing(
    "queue_wait_seconds", "s from a stream's creation until a worker first took it", buckets=SLOW
)
streams_ended = _counter("streams_ended_total", "Streams ended here, by state and code", "tenant", "state", "code")
provider_first_text_seconds = _timing(
    "provider_first_text_seconds", "s from asking a model to its first text", "model", buckets=SLOW
)
provider_attempts = _counter("provider_attempts_total", "Tries at a model: ok, or the code of what failed", "outcome")
provider_tokens = _counter(
    "provider_tokens_total", "Tokens that providers counted, of failed tries too", "tenant", "model", "direction"
)
append_seconds = _timing("append_seconds", "s of a commit, all streams in one, until Redis had answered")
appended_events = _tally("appended_events_total", "Events that commits carried into the log")
writer_bytes = _reading("writer_bytes", "Bytes of events that Redis has not confirmed yet")
takeovers = _counter("takeovers_total", "Streams taken over from a writer that is gone, by why", "reason")
fenced_writes = _tally("fenced_writes_total", "Writers that had lost their stream to another one when they wrote")
healed_events = _tally("healed_events_total", "Events that Redis had lost and a writer put back")
lease_margin_seconds = _reading("lease_margin_seconds", "The least s that a lease had left, within the last minute")
webhooks = _counter("webhooks_total", "Attempts at webhooks: delivered, retried, stopped, failed", "outcome")
webhooks_pending = _reading("webhooks_pending", "Webhooks that wait for their delivery, of all workers")
runs_overdue = _reading("runs_overdue", "Agents' streams that this worker found without a worker that has their agent")

# -- of the worker that archives: one at a time ----------------------------------------------------------------

unarchived = _reading("unarchived", "Finished streams that only Redis has")
archive_lag_seconds = _reading("archive_lag_seconds", "s since the oldest of them was due; 0: none is")
seals = _tally("seals_total", "Streams and erasures sealed into the archive")
head_behind = _reading("head_behind", "Tenants whose outside head does not have their last seal yet")
streams = _reading("streams", "Streams that have not ended, by state", "state")
store_used_ratio = _reading("store_used_ratio", "Of Redis' maxmemory, what is used; absent without one")


# -- labels ------------------------------------------------------------------------------------------------------


class Sent:
    """What a tenant's viewers were written. As with Tally, plain numbers."""

    __slots__ = ("bytes", "events")

    def __init__(self) -> None:
        self.events = 0
        self.bytes = 0


_sent: dict[str, Sent] = {}
sent_events.source = lambda: {name: sent.events for name, sent in _sent.copy().items()}
sent_bytes.source = lambda: {name: sent.bytes for name, sent in _sent.copy().items()}


def sent_to(name: str) -> Sent:
    """Where a viewer of this tenant is counted."""
    return _sent.setdefault(tenant(name), Sent())


_tenants: set[str] = set()
_models: set[str] = set()


def tenant(name: str) -> str:
    """As a label."""
    if name in _tenants:
        return name
    if len(_tenants) >= MOST_TENANTS:
        return OTHER
    _tenants.add(name)
    return name


def model(name: str) -> str:
    """As a label."""
    return name if name in _models else OTHER


def configure_models(names: Iterable[str]) -> None:
    """These, and no others, are labels: aliases and models of the operator's, which are few."""
    _models.update(names)


def render() -> bytes:
    """All of them, in Prometheus' text format. Takes milliseconds: to be called in a thread."""
    return generate_latest(REGISTRY)
