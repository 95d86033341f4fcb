"""Prometheus: what this process serves. Read at the scrape, counted nowhere else: nothing here is on a hot path."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from broker.live.hub import Hub
from broker.web.viewer import Viewers

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class _Tier(Collector):
    def __init__(self, hub: Hub, viewers: Viewers, unarchived: int) -> None:
        self._hub = hub
        self._viewers = viewers
        self._unarchived = unarchived

    def collect(self) -> Iterator[Metric]:
        yield GaugeMetricFamily("lastevent_viewers", "Viewers connected to this process", self._viewers.connected)
        yield GaugeMetricFamily("lastevent_topics", "Streams this process is subscribed to", self._hub.topics)
        yield GaugeMetricFamily("lastevent_hub_connected", "1 while the subscription holds", self._hub.is_connected)
        yield CounterMetricFamily(
            "lastevent_sent_bytes", "Bytes of events sent to viewers", self._viewers.bytes_sent + self._hub.bytes_sent
        )
        yield GaugeMetricFamily("lastevent_unarchived", "Finished streams that only Redis has", self._unarchived)
        yield CounterMetricFamily(
            "lastevent_view_records_lost", "Viewers' records that were never written", self._viewers.access.lost
        )
        ended = CounterMetricFamily("lastevent_viewers_ended", "Viewers that ended, by how", labels=["how"])
        for how, count in self._viewers.ended.items():
            ended.add_metric([how.value], count)
        yield ended


def render(hub: Hub, viewers: Viewers, unarchived: int) -> bytes:
    registry = CollectorRegistry()
    registry.register(_Tier(hub, viewers, unarchived))
    return generate_latest(registry)
