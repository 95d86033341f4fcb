"""What a provider is to the worker: a stream of (kind, data) events with one Finish at its end.

    stream(request)  ->  ("thinking_delta", {"text": …}) | ("text_delta", {"text": …}) | ("tool_start", …) | … | Finish

A provider that cannot continue raises ProviderFailure, whatever went wrong: it is the one place where a
provider's own errors are translated. It never retries: whether to try again is generation.py's decision,
which alone knows what viewers have already been shown.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any, NamedTuple, Protocol


class Finish(NamedTuple):
    """The provider has said everything: why it stopped, and what it counted."""

    stop_reason: str
    usage: dict[str, Any]  # at least input_tokens and output_tokens


class ProviderFailure(Exception):
    """The provider's stream broke off or never began.

    `code` is a stable word for clients (`provider_overloaded`), `message` is written for a person and never
    holds a secret or a traceback, `retryable` says whether the same request may succeed later, and
    `retry_after_s` is the wait that the provider asked for, if any.
    """

    def __init__(self, code: str, message: str, *, retryable: bool, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.retryable = retryable
        self.retry_after_s = retry_after_s


ProviderEvent = tuple[str, dict[str, Any]]


class Provider(Protocol):
    """One client of one model provider, shared by every generation of the process."""

    name: str

    def stream(self, model: str, request: dict[str, Any]) -> AsyncGenerator[ProviderEvent | Finish, None]:
        """Run one attempt. `request` holds messages, max_tokens and optionally system, as in POST /v1/streams.

        Closing the generator closes the provider's connection.
        """

    async def warm_up(self) -> None:
        """Do beforehand what the first attempt would have to wait for. Soon over, whatever the provider does; no error:
        what is wrong is said by the attempts that it fails.
        """

    async def aclose(self) -> None: ...
