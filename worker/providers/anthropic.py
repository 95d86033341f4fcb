"""Anthropic's Messages API as a Provider, over the anthropic SDK: its request, and how it fails.

The SDK makes the request; its answer is read by reading.py and anthropic_answer.py. The SDK's typed events cost 17 µs
each, parsing the raw ones 4 µs (anthropic 2.11).
"""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Iterator
from functools import partial
from typing import Any, NamedTuple

import httpx2
import orjson
from anthropic import (
    AnthropicError,
    APIConnectionError,
    APIStatusError,
    AsyncAnthropic,
    AsyncStream,
    AuthenticationError,
    transform_schema,
)
from anthropic.types import Message, RawMessageStreamEvent
from anthropic.types.beta.message_create_params import MessageCreateParamsBase as BetaParameters
from anthropic.types.message_create_params import MessageCreateParamsBase as StableParameters

from worker.providers.anthropic_answer import MOVE_ON, Answer
from worker.providers.bounds import DEFAULT_BOUNDS, Bounds
from worker.providers.failures import ProviderFailure, bad_key, failed, invalid_input, no_key, refused
from worker.providers.http import KEY_OF_NONE, HttpClient
from worker.providers.provider import Said
from worker.providers.reading import Reader, object_of
from worker.providers.request import answered, is_own, of_type
from worker.providers.sdk_types import checked_options

CREDENTIALS = "ANTHROPIC_API_KEY, ANTHROPIC_AUTH_TOKEN, a profile or a workload's identity"


class AnthropicProvider:
    name = "anthropic"

    def __init__(
        self,
        *,
        api_key: str | None = None,
        base_url: str | None = None,
        silence_s: float,
        idle_s: float | None = None,
        bounds: Bounds = DEFAULT_BOUNDS,
        name: str = "anthropic",
    ) -> None:
        """Without a `base_url`, what the SDK finds: its variables, a profile, a workload's identity; the API's address.
        With one, nothing of these is sent there, and a server that wants no key needs none.
        """
        self.name = name
        self._http = HttpClient(bounds, silence_s)
        self._reader = Reader(bounds, silence_s, idle_s or 10 * silence_s, _failure)
        self._client: AsyncAnthropic | None = None
        self._no_client: ProviderFailure | None = None
        try:
            self._client = AsyncAnthropic(
                api_key=api_key or (KEY_OF_NONE if base_url else None),
                base_url=base_url,
                max_retries=0,
                http_client=self._http,
            )
        except AnthropicError as error:  # a profile that is not there, or cannot be read: each attempt says so
            self._no_client = self._reader.failure(error)
        if self._client and base_url:
            self._client._custom_headers = {}  # ANTHROPIC_CUSTOM_HEADERS, which may hold a key

    async def warm_up(self) -> None:
        """A connection, kept for the first attempt. (What the SDK imports has been imported with this module.)"""
        if self._client:
            await self._http.warm_up(self._client.base_url)

    async def check(self) -> None:
        try:
            await self._usable().models.list(limit=1)
        except Exception as error:
            raise self._reader.failure(error) from None

    async def aclose(self) -> None:
        await (self._client.close() if self._client else self._http.aclose())

    def stream(self, model: str, request: dict[str, Any]) -> AsyncGenerator[Said, None]:
        return self._reader.read(partial(self._ask, model, request), Answer(self.name))

    async def _ask(self, model: str, request: dict[str, Any]) -> httpx2.Response:
        call = _call(self.name, model, request)
        client = self._usable()
        try:
            try:
                return await _post(client, call)
            except AuthenticationError:
                if client._token_cache is None:
                    raise
                # A token that was taken back before its time. The SDK gets a new one in its retries, which are off.
                client._token_cache.invalidate()
                return await _post(client, call)
        except UnicodeEncodeError:
            raise bad_key() from None

    def _usable(self) -> AsyncAnthropic:
        if self._client is None:
            assert self._no_client
            raise self._no_client
        return self._client


# ---- Asking


class _Call(NamedTuple):
    body: bytes
    headers: dict[str, str]
    is_beta: bool


async def _post(client: AsyncAnthropic, call: _Call) -> httpx2.Response:
    """As `messages.create` or `beta.messages.create`, which take 0.15 s for 32 MiB, in which nothing else goes on."""
    answer = await client.post(
        "/v1/messages",
        content=call.body,
        options={"headers": call.headers, "params": {"beta": "true"} if call.is_beta else {}},
        cast_to=Message,
        stream=True,
        stream_cls=AsyncStream[RawMessageStreamEvent],
    )
    return answer.response


_FIELDS = ("system", "max_tokens", "tools", "tool_choice", "thinking", "stop_sequences", "temperature")
_THE_REQUESTS = frozenset({"model", "messages", "stream"})
_BETA_ONLY = BetaParameters.__annotations__.keys() - StableParameters.__annotations__.keys()
_HEADERS = {
    "betas": "anthropic-beta",
    "user_profile_id": "anthropic-user-profile-id",
    "workspace_id": "anthropic-workspace-id",
}
_EFFORTS = {"minimal": "low"}  # others are called as ours


def _call(provider: str, model: str, request: dict[str, Any]) -> _Call:
    """Raises ProviderFailure `invalid_input` for provider_options that the SDK's types do not know."""
    given = object_of(request.get("provider_options")).get(provider)
    is_beta = not _BETA_ONLY.isdisjoint(object_of(given))
    params: Any = BetaParameters if is_beta else StableParameters
    options = checked_options(request, provider, params, not_here=_THE_REQUESTS)
    headers = {
        header: _header(options.pop(name), f"provider_options.{provider}.{name}")
        for name, header in _HEADERS.items()
        if name in options
    }
    asked = _asked(request)
    if "output_config" in asked and isinstance(options.get("output_config"), dict):
        options["output_config"] = {**asked["output_config"], **options["output_config"]}
    messages = _messages(provider, model, request["messages"])
    body = {"model": model, "stream": True, "messages": messages, **asked, **options}
    return _Call(orjson.dumps(body), headers, is_beta)


def _asked(request: dict[str, Any]) -> dict[str, Any]:
    """The neutral fields, which are almost all this API's own."""
    asked = {name: request[name] for name in _FIELDS if request.get(name) not in (None, "", [])}
    effort, schema = request.get("effort"), request.get("output_schema")
    output: dict[str, Any] = {}
    if effort == "none":
        asked.setdefault("thinking", {"type": "disabled"})
    elif effort:
        output["effort"] = _EFFORTS.get(effort, effort)
    if schema is not None:
        output["format"] = {"type": "json_schema", "schema": _schema(schema)}
    return {**asked, "output_config": output} if output else asked


def _schema(schema: Any) -> Any:
    """In the part of JSON Schema that the API takes, as the SDK does it for its own types; else as it is."""
    try:
        return transform_schema(schema)
    except Exception:
        return schema


def _header(value: Any, place: str) -> str:
    header = ",".join(map(str, value)) if isinstance(value, list) else str(value)
    if not re.fullmatch(r"[!-~]{1,2000}", header):
        raise invalid_input(f"{place} has characters that a header cannot carry.")
    return header


def _messages(provider: str, model: str, messages: list[Any]) -> list[Any]:
    """As they are, but for what this API does not know or refuses. What is long in them is not copied."""
    sent = (
        _message(provider, model, message, place) if "native" in message else message
        for place, message in _objects(messages)
    )
    return [_with_usable_calls(message) for message in sent if message.get("content") != []]


def _objects(messages: list[Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for index, message in answered(messages):
        place = f"messages[{index}]"
        yield place, of_type(message, dict, place)


def _message(provider: str, model: str, message: dict[str, Any], place: str) -> dict[str, Any]:
    """One that the assistant said in a stream of ours. Its content is native already."""
    native = of_type(message["native"] or {}, dict, f"{place}.native")
    own, content = is_own(native, provider, model), message.get("content")
    if isinstance(content, list):
        content = [block for block in content if _may_be_sent(block, own)]
    return {"role": message.get("role"), "content": content}


def _with_usable_calls(message: dict[str, Any]) -> dict[str, Any]:
    """Other models' calls have ids, and arguments, that this API refuses."""
    content = message.get("content")
    if not isinstance(content, list):
        return message
    usable = [_usable_call(block) for block in content]
    return {**message, "content": usable} if usable != content else message


def _usable_call(block: Any) -> Any:
    match block:
        case {"type": "tool_use", "id": str(call_id), **rest}:
            given = rest.get("input")
            if given is not None and not isinstance(given, dict):
                block = {**block, "input": {"input": given}}
            return block if _ID.fullmatch(call_id) else {**block, "id": _NOT_OF_IDS.sub("_", call_id)}
        case {"type": "tool_result", "tool_use_id": str(call_id)} if not _ID.fullmatch(call_id):
            return {**block, "tool_use_id": _NOT_OF_IDS.sub("_", call_id)}
    return block


_ID = re.compile(r"[a-zA-Z0-9_-]*")
_NOT_OF_IDS = re.compile(r"[^a-zA-Z0-9_-]")


def _may_be_sent(block: Any, own: bool) -> bool:
    match block:
        case {"type": "thinking" | "redacted_thinking"}:
            return own  # signatures are their model's, and are refused from another
        case {"type": "text", "text": str(text)}:
            # Models do say nothing but a line break before a call, and the API refuses it.
            return bool(text) and not text.isspace()
    return True


# ---- Failing


def _failure(error: Exception) -> ProviderFailure | None:
    """The SDK's own errors."""
    match error:
        case APIStatusError():
            return _refusal(error)
        case APIConnectionError():
            return failed("provider_cut")
        case AnthropicError():  # a profile, a token's file, the exchange of one token for another
            return _bad_credentials(error)
        case TypeError() if "authentication method" in str(error):  # all the SDK has to say about a missing key
            return no_key(CREDENTIALS)
    return None


def _refusal(error: APIStatusError) -> ProviderFailure:
    code = "provider_overloaded" if error.type == "overloaded_error" else None
    moves_on = error.type in MOVE_ON
    return refused(error.status_code, error.api_message, error.response.headers, code=code, moves_on=moves_on)


def _bad_credentials(error: AnthropicError) -> ProviderFailure:
    status = getattr(error, "status_code", None)  # of the server that gives out tokens
    if status is not None and status >= 500:
        return failed("provider_error", "The model provider gave out no token just now.", said=str(error))
    message = "The credentials for the model provider that are configured here cannot be used."
    return failed("provider_unauthorized", message, said=str(error))
