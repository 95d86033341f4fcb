"""launchdarkly-eventsource, which comes back by itself."""

from ld_eventsource import SSEClient
from ld_eventsource.config import ErrorStrategy
from ld_eventsource.errors import HTTPStatusError


def follow(url, cursor, show):
    with SSEClient(url, last_event_id=cursor, error_strategy=ErrorStrategy.always_continue()) as client:
        for event in client.events:
            show(event.last_event_id, event.event, event.data)
            if event.event in ("done", "error", "cancelled"):
                return
