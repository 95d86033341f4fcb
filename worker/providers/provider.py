"""What a provider is to the worker: a stream of (kind, data) events with one Finish at its end.

    stream(model, request)  ->  ("thinking_delta", {"text": …}) | ("text_delta", {"text": …}) | ("tool_start", …) | …
                                | Counted, as often as the provider says what it has counted
                                | Finish, once

A provider that cannot continue raises ProviderFailure, whatever went wrong (failures.py): each adapter translates its
SDK's errors in one place. It never retries: whether to try again is generation.py's decision, which alone knows what
viewers have already been shown.

Nothing that a provider says is dropped: what has no kind of ours is an `internal.provider` event, whole
(docs/PROVIDERS.md has the tables).
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any, NamedTuple, Protocol

STOP_REASONS = ("end_turn", "tool_use", "max_tokens", "stop_sequence", "refusal", "other")

INTERNAL = "internal.provider"


class Counted(NamedTuple):
    """What the provider has counted so far in this attempt; the latest holds. Not an event.

    Disjoint counts of tokens: `input_tokens` (not those from or into a cache), `cache_read_input_tokens`,
    `cache_creation_input_tokens`, `output_tokens` (thinking included), of them `thinking_tokens`. A count that the
    provider did not give is absent. `provider`: its own usage object, whole.
    """

    usage: dict[str, Any]


class Finish(NamedTuple):
    """The provider has said everything: why it stopped, and what it counted (as in Counted)."""

    stop_reason: str
    """One of STOP_REASONS."""
    usage: dict[str, Any]
    provider_stop_reason: str | None = None
    """In its own words."""
    stop_sequence: str | None = None
    stop_details: Any = None
    model: str | None = None
    """What answered, as the provider calls it: with a date, perhaps."""
    response_id: str | None = None
    """The provider's name for this answer."""
    native: Any = None
    """The assistant's content in the provider's own form, as the next turn needs it, with references to what the events
    hold (broker/log/turn.py). None: it is one text and nothing else."""
    is_paused: bool = False
    """The provider waits for this turn to be sent back, and then goes on."""

    def told(self) -> dict[str, Any]:
        """What `done` says of how the provider ended."""
        names = ("provider_stop_reason", "stop_sequence", "stop_details", "response_id")
        return {name: value for name in names if (value := getattr(self, name)) is not None}


ProviderEvent = tuple[str, dict[str, Any]]
Said = ProviderEvent | Counted | Finish


def untranslated(provider: str, event: Any) -> ProviderEvent:
    """What the provider said and we have no kind for: kept whole, for operators."""
    return INTERNAL, {"provider": provider, "event": event}


class Provider(Protocol):
    """One client of one model provider, shared by every generation of the process."""

    name: str

    def stream(self, model: str, request: dict[str, Any]) -> AsyncGenerator[Said, None]:
        """Run one attempt. `request`: the neutral one (docs/API.md, POST /v1/streams), which each adapter translates.

        Closing the generator closes the provider's connection.
        """

    async def warm_up(self) -> None:
        """Do beforehand what the first attempt would have to wait for. Soon over, whatever the provider does; no error:
        what is wrong is said by the attempts that it fails.
        """

    async def check(self) -> None:
        """Ask the provider what costs nothing, to see whether it takes the key. Raises ProviderFailure."""

    async def aclose(self) -> None: ...
