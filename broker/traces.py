"""Traces, by hand: which part of a stream's way is a span, how it is called and what it says, all in this file.

    POST /v1/streams   SERVER    child of the caller's traceparent
      queue            PRODUCER  the stream is created and queued; its traceparent is in the stream's meta
        generate       CONSUMER  child of it, and linked: from a worker's claim to the ending
          chat MODEL   CLIENT    each try at a provider, with an event at its first text
        archive        INTERNAL  child of it, and linked
    follow             SERVER    a trace of its own, linked to the stream's: from a viewer's request to its first byte

An external stream has no queue; its meta has the traceparent of the POST. No span holds a prompt, a text, metadata, a
user, a session, a token or a key, and of an error its code alone.

They are exported by OTLP over HTTP, where OTEL_EXPORTER_OTLP_ENDPOINT, or _TRACES_ENDPOINT, says where to and the extra
`lastevent[otel]` is installed. Otherwise OpenTelemetry is not even imported, and all of this does nothing.

Names of `gen_ai.…` are those of OpenTelemetry's conventions for generative AI, which are not stable yet.
"""

from __future__ import annotations

import logging
import os
import re
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from importlib.metadata import version
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import SpanContext, SpanKind

logger = logging.getLogger(__name__)

ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")

SHUTDOWN_S = 3.0
"""How long an exit waits for the last spans to be taken."""

_TRACEPARENT = re.compile(r"00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})", re.ASCII)
"""W3C Trace Context, §3.2. Of a later version, or of several, none is believed."""

_CODE = re.compile(r"[a-z][a-z0-9_]{0,49}", re.ASCII)

_PROVIDERS = {"gemini": "gcp.gemini"}
"""What the conventions call a provider otherwise than we do."""


class Span:
    """One that is not recorded: nothing is traced here."""

    traceparent: str | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        pass

    def about(self, sid: str) -> None:
        """The stream's id, where it is not known at the start."""

    def answered(self, status: int) -> None:
        """With this status of HTTP."""

    def first_text(self) -> None:
        """The model's first text has come."""

    def counted(self, model: str | None, stop_reason: str, usage: Mapping[str, Any]) -> None:
        """The model has finished, and used this (worker/providers/provider.py)."""

    def ended(self, state: str, code: str = "") -> None:
        """The stream has ended so."""

    def failed(self, code: str) -> None:
        """By an error of this code."""

    def end(self) -> None:
        """It is over. Once more does nothing."""


NOTHING = Span()

_provider: TracerProvider | None = None


def set_up_traces(process: str) -> None:
    """Export spans from now on, if that is configured. `process`: server or worker."""
    global _provider
    if not is_asked_for(os.environ):
        return
    try:
        _provider = _exporting(process)
    except ImportError:
        logger.warning(
            "an OTLP endpoint is set, but OpenTelemetry is not installed, so nothing is traced. "
            "Install lastevent[otel], or unset the endpoint"
        )
    except Exception:  # one of OpenTelemetry's many variables has a value that it cannot use
        logger.exception("traces cannot be set up, so nothing is traced; look at the variables OTEL_…")


def is_asked_for(environment: Mapping[str, str]) -> bool:
    return (
        any(environment.get(name) for name in ENDPOINTS)
        and environment.get("OTEL_SDK_DISABLED", "").strip().lower() != "true"
        and environment.get("OTEL_TRACES_EXPORTER", "otlp") != "none"
    )


def end_traces() -> None:
    """Export what is left, for SHUTDOWN_S at most: a collector that is away must not delay an exit for long."""
    global _provider
    if _provider:
        ending = threading.Thread(target=_provider.shutdown, name="end of traces", daemon=True)
        _provider = None
        ending.start()
        ending.join(SHUTDOWN_S)


# -- the spans ---------------------------------------------------------------------------------------------------


def posting(route: str, traceparents: Sequence[str]) -> Span:
    """`POST …`, which starts a stream. `traceparents`: the request's headers of that name."""
    if _provider is None:
        return NOTHING
    parent = _context_of(traceparents[0]) if len(traceparents) == 1 else None
    attributes = {"http.request.method": "POST", "http.route": route}
    return _begun(f"POST {route}", "SERVER", attributes, _under(parent))


def queueing(sid: str, *, is_external: bool) -> Span:
    """While a stream is created and queued. Its traceparent is to go with the stream."""
    if _provider is None:
        return NOTHING
    if is_external:
        return _Current()
    return _begun("queue", "PRODUCER", {"lastevent.stream.id": sid})


def generating(sid: str, traceparent: str | None, attempt: int) -> Span:
    if _provider is None:
        return NOTHING
    queue = _context_of(traceparent)
    attributes = {"lastevent.stream.id": sid, "lastevent.attempt": attempt}
    return _begun("generate", "CONSUMER", attributes, _under(queue), queue)


def chatting(model: str) -> Span:
    """One try at a model, `provider/name`."""
    if _provider is None:
        return NOTHING
    provider, _, name = model.partition("/")
    attributes = {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": _PROVIDERS.get(provider, provider),
        "gen_ai.request.model": name,
    }
    return _begun(f"chat {name}", "CLIENT", attributes)


def archiving(traceparents: Mapping[str, str | None]) -> AbstractContextManager[object]:
    """While these streams, id → traceparent, are moved into the archive together."""
    return NOTHING if _provider is None else _archiving(traceparents)


@contextmanager
def _archiving(traceparents: Mapping[str, str | None]) -> Iterator[None]:
    spans = []
    for sid, traceparent in traceparents.items():
        if queue := _context_of(traceparent):
            spans.append(_begun("archive", "INTERNAL", {"lastevent.stream.id": sid}, _under(queue), queue))
    try:
        yield
    except Exception as error:
        for span in spans:
            span.failed(_code_of(error))
        raise
    finally:
        for span in spans:
            span.end()


def are_kept() -> bool:
    return _provider is not None


def following(sid: str, traceparent: str | None, *, cursor: int, tail: int, source: str, waited_s: float) -> Span:
    """A viewer that asked `waited_s` ago, until its first byte. `source`: where its first events are (start, ring, log,
    archive)."""
    if _provider is None:
        return NOTHING
    attributes = {
        "lastevent.stream.id": sid,
        "lastevent.cursor": cursor,
        "lastevent.replayed": max(0, tail - cursor),
        "lastevent.from": source,
    }
    asked_ns = time.time_ns() - round(waited_s * 1e9)
    return _begun("follow", "SERVER", attributes, _under(None), _context_of(traceparent), start_time=asked_ns)


# -- by OpenTelemetry --------------------------------------------------------------------------------------------


def _exporting(process: str) -> TracerProvider:
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    named = {"service.name": f"lastevent-{process}", "service.version": version("lastevent")}
    by_operator = Resource.create().attributes
    if not str(by_operator["service.name"]).startswith("unknown_service"):
        del named["service.name"]
    provider = TracerProvider(resource=Resource.create(named), shutdown_on_exit=False)
    # Its queue is bounded (2,048), and a thread of its own waits for the collector. Beyond that spans are dropped.
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider


def _begun(
    name: str,
    kind: str,
    attributes: Mapping[str, Any],
    context: Any = None,
    link: SpanContext | None = None,
    start_time: int | None = None,
) -> Span:
    from opentelemetry.trace import Link, SpanKind

    assert _provider
    links = [Link(link)] if link else None
    of_kind: SpanKind = SpanKind[kind]
    tracer = _provider.get_tracer("lastevent")
    return _Recorded(tracer.start_span(name, context, of_kind, attributes, links, start_time))


class _Recorded(Span):
    """`with` makes it the parent of what is begun within."""

    def __init__(self, span: Any) -> None:
        self._span = span
        self._token: Any = None

    @property
    def traceparent(self) -> str:  # type: ignore[override]
        return _traceparent(self._span.get_span_context())

    def __enter__(self) -> Self:
        from opentelemetry import context, trace

        self._token = context.attach(trace.set_span_in_context(self._span))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        from opentelemetry import context

        context.detach(self._token)
        if error is not None:
            self.failed(_code_of(error))
            self.answered(getattr(error, "status", 0))
        self.end()

    def about(self, sid: str) -> None:
        self._span.set_attribute("lastevent.stream.id", sid)

    def answered(self, status: int) -> None:
        if status:
            self._span.set_attribute("http.response.status_code", status)

    def first_text(self) -> None:
        self._span.add_event("first text")

    def counted(self, model: str | None, stop_reason: str, usage: Mapping[str, Any]) -> None:
        # The conventions count what a cache has given, or taken, among the input.
        cached = ("input_tokens", "cache_read_input_tokens", "cache_creation_input_tokens")
        self._span.set_attributes(
            {
                "gen_ai.response.finish_reasons": [stop_reason],
                "gen_ai.usage.input_tokens": sum(usage.get(name, 0) for name in cached),
                "gen_ai.usage.output_tokens": usage.get("output_tokens", 0),
                **({"gen_ai.response.model": model} if model else {}),
            }
        )

    def ended(self, state: str, code: str = "") -> None:
        self._span.set_attribute("lastevent.state", state)
        if code:
            self.failed(code)

    def failed(self, code: str) -> None:
        from opentelemetry.trace import Status, StatusCode

        self._span.set_attribute("error.type", code if _CODE.fullmatch(code) else "other")
        self._span.set_status(Status(StatusCode.ERROR))

    def end(self) -> None:
        if self._span.is_recording():
            self._span.end()


class _Current(Span):
    """The one around it, which others end."""

    @property
    def traceparent(self) -> str | None:  # type: ignore[override]
        from opentelemetry import trace

        around = trace.get_current_span().get_span_context()
        return _traceparent(around) if around.is_valid else None


def _code_of(error: BaseException) -> str:
    code = getattr(error, "code", None)
    if isinstance(code, str):
        return code
    return "internal_error" if isinstance(error, Exception) else "cancelled"


def _traceparent(context: SpanContext) -> str:
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"


def _context_of(traceparent: str | None) -> SpanContext | None:
    """None for what is none."""
    from opentelemetry.trace import SpanContext, TraceFlags

    if not (read := _TRACEPARENT.fullmatch(traceparent or "")):
        return None
    trace_id, span_id, flags = (int(part, 16) for part in read.groups())
    context = SpanContext(trace_id, span_id, is_remote=True, trace_flags=TraceFlags(flags & TraceFlags.SAMPLED))
    return context if context.is_valid else None


def _under(parent: SpanContext | None) -> Any:
    """The context of a child; of None, that of a trace that begins here."""
    from opentelemetry.context import Context
    from opentelemetry.trace import NonRecordingSpan, set_span_in_context

    return set_span_in_context(NonRecordingSpan(parent), Context()) if parent else Context()
