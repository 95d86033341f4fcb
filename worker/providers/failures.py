"""How a provider fails: the codes that clients see, what they mean, and the transport's errors translated to them."""

from __future__ import annotations

import os
import re
import time
from contextlib import suppress
from email.utils import parsedate_to_datetime

import httpx2

from worker.providers.bounds import OutOfBounds

QUOTE_LIMIT = 300  # characters of the provider's own words that are kept


class ProviderFailure(Exception):
    """The provider's stream broke off or never began.

    `code` is a stable word for clients (`provider_overloaded`). `message` is a sentence of ours, since users read it:
    it holds no secret, no traceback and none of the provider's own words. `retryable` says whether the same request may
    succeed later, and `retry_after_s` is the wait that the provider asked for, if any.
    """

    status: int | None = None
    """Of its HTTP answer, if that was a refusal."""
    request_id: str | None = None
    """The provider's own name for the request, which its support asks for."""
    said: str | None = None
    """In its own words, for operators. Keys are taken out."""
    moves_on: bool = False
    """Not retryable, but of a chain the next model may do: it is this server's fault, not the request's."""
    after_effects: bool = False
    """The provider had run a tool of somebody else's (MCP): the same request again may run it twice."""

    def __init__(self, code: str, message: str, *, retryable: bool, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.retryable = retryable
        self.retry_after_s = retry_after_s


# Code: whether the same request may succeed later, and the message for a person.
CODES = {
    "provider_overloaded": (True, "The model provider is overloaded."),
    "provider_rate_limited": (True, "The model provider's rate limit was reached."),
    "provider_error": (True, "The model provider had an internal error."),
    "provider_refused": (False, "The model provider refused the request."),
    "provider_unauthorized": (False, "The model provider did not accept this server's credentials."),
    "provider_cut": (True, "The connection to the model provider broke."),
    "provider_silent": (True, "The model provider was silent for too long."),
    "provider_bad_answer": (True, "The model provider's answer could not be understood."),
    "invalid_input": (False, "The model provider cannot take this request."),
}
STATUSES = {
    401: "provider_unauthorized",
    403: "provider_unauthorized",
    408: "provider_error",  # "again, please", say the APIs with these two, and their SDKs' own retries obey
    409: "provider_error",
    429: "provider_rate_limited",
    529: "provider_overloaded",
}
_MOVE_ON = ("provider_unauthorized",)


def failed(
    code: str,
    message: str = "",
    *,
    said: object = None,
    status: int | None = None,
    request_id: str | None = None,
    retry_after_s: float | None = None,
    moves_on: bool = False,
) -> ProviderFailure:
    """`said`: the provider's own words, for operators: they may repeat the prompt, or say whose account it is."""
    retryable, default = CODES[code]
    failure = ProviderFailure(code, message or default, retryable=retryable, retry_after_s=retry_after_s)
    failure.said = shown(_without_our_keys(said)) if isinstance(said, str) and said else None
    failure.status, failure.request_id = status, request_id
    failure.moves_on = moves_on or code in _MOVE_ON
    return failure


def refused(
    status: int, said: object, headers: httpx2.Headers, *, code: str | None = None, moves_on: bool = False
) -> ProviderFailure:
    """An HTTP answer that is no success. `code`: where the provider's body says more than its status."""
    if code is None:
        default = "provider_error" if status >= 500 else "provider_refused" if status >= 400 else "provider_bad_answer"
        code = STATUSES.get(status, default)
    return failed(
        code,
        said=said,
        status=status,
        request_id=request_id_of(headers),
        retry_after_s=retry_after_s(headers.get("retry-after")),
        moves_on=moves_on or status == 404,
    )


def invalid_input(what: str) -> ProviderFailure:
    """Something in the request that this provider cannot be asked. `what` names the place, and repeats no value."""
    return failed("invalid_input", f"The model provider cannot take this request: {what}")


def silent(silence_s: float) -> ProviderFailure:
    return failed("provider_silent", f"The model provider was silent for {silence_s:g} seconds.")


def bad_key() -> ProviderFailure:
    """Nothing is said of what went wrong with it, here or in a cause: that may be the header, and so the key."""
    return failed("provider_unauthorized", "The API key contains characters that no API key can have.")


def no_key(variables: str) -> ProviderFailure:
    return failed("provider_unauthorized", f"No API key for the model provider is configured here ({variables}).")


def of_transport(error: BaseException | None, silence_s: float) -> ProviderFailure | None:
    """What the HTTP client or reading raised. None: the error is of neither."""
    match error:
        case OutOfBounds():
            return failed("provider_bad_answer", "The model provider's answer is longer than it may be.")
        case httpx2.ReadTimeout():
            return silent(silence_s)
        case httpx2.LocalProtocolError():
            return bad_key()
        case httpx2.ConnectError() | httpx2.ConnectTimeout():
            return failed("provider_cut", "The model provider could not be reached.")
        case httpx2.TransportError():
            return failed("provider_cut")
    return None


def shown(said: str) -> str:
    """On one line, not too long, and without what looks like a key."""
    return "".join(c if c.isprintable() else " " for c in _KEY.sub(r"\1…", said[:QUOTE_LIMIT]))


def _without_our_keys(said: str) -> str:
    """A server of one's own takes keys of any shape, and may echo them. Shorter ones are words that are said anyway."""
    for name, value in os.environ.items():
        if len(value) >= 8 and name.upper().endswith(_OF_SECRETS):
            said = said.replace(value, "…")
    return said


_OF_SECRETS = ("KEY", "TOKEN", "SECRET", "PASSWORD")


# The shape of API keys here and at gateways, some of which echo them, and bearer tokens.
_KEY = re.compile(r"(sk-|AIza|Bearer )[\w.-]+")


def request_id_of(headers: httpx2.Headers) -> str | None:
    said = headers.get("request-id") or headers.get("x-request-id") or headers.get("x-goog-request-id")
    return shown(said)[:100] if said else None


def retry_after_s(header: str | None) -> float | None:
    """RFC 9110 §10.2.3: seconds, or a date, as seconds from now. Not capped; what is neither counts as absent."""
    if header is None:
        return None
    if re.fullmatch(r"[0-9]+(\.[0-9]+)?", header):
        return float(header)
    with suppress(ValueError, OverflowError):
        return max(parsedate_to_datetime(header).timestamp() - time.time(), 0.0)
    return None
