"""launchdarkly-eventsource, which comes back by itself; also after a 204, unless it is told what that means."""

from ld_eventsource import SSEClient
from ld_eventsource.config import ErrorStrategy
from ld_eventsource.errors import HTTPStatusError


def _come_back_from(error):
    is_final = isinstance(error, HTTPStatusError) and (error.status == 204 or 400 <= error.status < 500)
    return (ErrorStrategy.FAIL if is_final else ErrorStrategy.CONTINUE), None


def follow(url, cursor, show):
    strategy = ErrorStrategy.from_lambda(_come_back_from)
    with SSEClient(url, last_event_id=cursor, error_strategy=strategy) as client:
        for event in client.events:
            show(event.last_event_id, event.event, event.data)
            if event.event in ("done", "error", "cancelled"):
                return
