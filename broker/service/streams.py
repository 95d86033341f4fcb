"""What a caller can do with streams, without HTTP: start, regenerate, cancel, append, look up."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import replace
from difflib import get_close_matches
from functools import partial
from typing import Any, NamedTuple, TypeVar

import orjson
from arq.connections import ArqRedis

from broker import traces
from broker.archive.reader import ArchiveReader
from broker.auth import Auth, Grant, require_visible
from broker.errors import (
    ApprovalDecided,
    ArchiveUnavailable,
    BodyTooLarge,
    Forbidden,
    InvalidRequest,
    KeyReused,
    LasteventError,
    RedisRefuses,
    StoreUnavailable,
    StreamClosed,
    StreamExpired,
    StreamLimit,
    StreamNotFound,
    StreamRunning,
    TooManyStreams,
    UnknownAgent,
    UnknownModel,
    WriterSuperseded,
)
from broker.log.agents import Agents, Announced
from broker.log.event import CANCELLED, ERROR, encode_data, is_terminal
from broker.log.given import COUNTED_FROM_MS
from broker.log.idempotency import Reservation, digest_of, mark_created, require_key, reserve, reserved_ms
from broker.log.meta import EXTERNAL, FIELDS, FOLD, Meta, NewStream, new_sid
from broker.log.models import Models
from broker.log.needs import Needs
from broker.log.queue import enqueue
from broker.log.readable import ReadableLog
from broker.log.running import Running
from broker.log.seizures import Seizures
from broker.log.servers import ENDINGS_WAIT, RETURN_LEASES
from broker.log.steps import (
    EXTERNAL_LEASE_S,
    Append,
    Appended,
    Pen,
    Unsent,
)
from broker.log.stream_log import StreamLog
from broker.service.agent_input import require_input
from broker.service.allowed import require_agent, require_models, require_options, require_tokens
from broker.service.bodies import MAX_INPUT_BYTES, AppendEvents, CreateStream, Decide, ForToken, GiveInput
from broker.service.output_schema import require_schema
from broker.service.record import stream_record, webhook_json
from broker.service.webhook import require_webhook
from broker.settings import PROVIDERS, Settings
from broker.store.room import Room
from broker.tenants.creations import Creations
from broker.tenants.limits import Limits
from broker.tenants.scopes import MINT, READ
from broker.tenants.tokens import require_ttl

logger = logging.getLogger(__name__)

T = TypeVar("T")
R = TypeVar("R")

ERASED = "The stream's content has been erased."

ERASURE_WAIT_S, ERASURE_POLL_S = 5.0, 0.1
"""The archiver erases within a second or two. After that the caller gets the answer that it will be erased later."""

ARCHIVE_ANSWER_S, ARCHIVE_PAUSE_S = 1.0, 5.0
"""What Redis has as well does not wait longer for the archive; one that is away is not asked again for the pause."""


NAMED_AGENTS = 8
"""Names that an answer lists; all of them has GET /v1/agents."""

REPEATED_BYTES = 2**20
"""A longer request is not in the answer to its start: who has just sent 32 MiB would get them back."""

_NEEDED = (
    *("session", "user", "producer", "idempotency", "erased_by", "epoch", "claim", "base", "stopped_after", "agent"),
    *("traceparent", "model", "dialect", "fold", "attempt", "request_of", "durable", "expires"),
)
_LOOKED_UP = [field.name for field in FIELDS if field.name in _NEEDED or field.outlives_erasure or field is Meta.erased]
"""What is needed of a stream by whoever follows, reads, cancels, erases it or writes to it."""


class Said(NamedTuple):
    """What a start in a dialect's words keeps of them: see meta.dialect. `echo`: little, for its answers. `kept`: what
    may be long; it stands in the request, as `echo`, where no provider looks.
    """

    name: str
    model: str
    echo: dict[str, Any]
    kept: dict[str, Any] | None = None


class Started(NamedTuple):
    """A new stream's record as JSON, or the record of an earlier one under the same Idempotency-Key."""

    record: dict[str, Any]
    is_new: bool

    @property
    def sid(self) -> str:
        sid: str = self.record["id"]
        return sid


class Found(NamedTuple):
    """A stream's meta, and whether Redis has the stream (or only the archive)."""

    meta: Meta
    is_in_redis: bool = True


class Ended(NamedTuple):
    """How a stream ended: by this cancel, or (`already`) before it. `stopped_after`: the last event before that."""

    state: str
    last_event_id: int
    stopped_after: int
    already: bool


class Streams:
    """What callers do with streams. Any method may raise RedisUnavailable, LogHealing or ArchiveUnavailable.

    A method that takes a stream id raises StreamNotFound or StreamExpired as `look_up` does.
    """

    def __init__(
        self,
        log: StreamLog,
        archive: ArchiveReader | None,
        seizures: Seizures,
        queue: ArqRedis,
        auth: Auth,
        settings: Settings,
        needs: Needs,
        creations: Creations,
    ) -> None:
        self.log = log
        self.models = Models(log.redis, log.keys)
        self.agents = Agents(log.redis, log.keys)
        self.running = Running(log.redis, log.keys)
        self._archive = archive
        self._seizures = seizures
        self._queue = queue
        self._auth = auth
        self._settings = settings
        self._asks_archive_from_s = 0.0
        self._room = Room(log.redis, settings.store_reserve)
        self._needs = needs
        self._creations = creations

    async def look_up(
        self, sid: str, grant: Grant, *, as_sealed: bool = False, whole: bool = False, at_tail: bool = False
    ) -> Found:
        """A stream, or its tombstone. Raises StreamNotFound, or StreamExpired if the listings still have it.

        What is not the caller's takes all the steps of what does not exist: not even its time tells them apart.

        `whole`: with its metadata and ending, and from the archive with its request, each as long as its author likes.
        Without it Redis sends less than 1 KB: every reconnect, and every append of a producer, looks its stream up.
        `as_sealed`: of a finished stream that both have, what the archive has: its seal is checked against that, and
        whoever writes to Redis can change the copy there. While the archive is away it is Redis' copy nevertheless.
        `at_tail`: of a stream that runs, its `tail` is where the log ends now.
        Raises LogHealing if Redis may have lost a stream whose writer is about to put it back.
        """
        [meta] = await (self.log.read_meta(sid) if whole else self.log.read_fields(_LOOKED_UP, sid))
        if meta and grant.opens(sid, meta):
            if as_sealed and meta.has_ended and meta.erased is None and (sealed := await self._sealed(sid, whole)):
                require_visible(sid, sealed, grant)
                return Found(sealed, is_in_redis=False)
            return Found(await self.log.at_tail(sid, meta) if at_tail else meta)
        archived = await self._archive.find(sid, with_request=whole) if self._archive else None
        if archived and meta is None and grant.opens(sid, archived):  # Redis' word counts: it may be erased there first
            return Found(archived, is_in_redis=False)
        await self.log.servers.require_settled(RETURN_LEASES)
        listed = await self.log.redis.zscore(self.log.keys.streams(grant.tenant), sid)
        # Whose it was nobody knows any more: to a token it is told only if that names it.
        if listed is not None and not (meta or archived) and grant.names_stream(sid):
            raise StreamExpired("The stream has ended and its retention is over.")
        raise StreamNotFound("There is no stream with this id.")

    async def look_up_whole(self, sid: str, grant: Grant) -> Meta:
        """A stream with its request, or its tombstone; as `as_sealed`. Raises as `look_up` does."""
        found = await self.look_up(sid, grant, as_sealed=True, whole=True, at_tail=True)
        return await self.log.requests.of(found.meta)

    async def look_up_content(
        self, sid: str, grant: Grant, *, as_sealed: bool = False, whole: bool = False, at_tail: bool = False
    ) -> Found:
        """As `look_up`, a stream that still has its content. Raises StreamExpired if it was erased."""
        found = await self.look_up(sid, grant, as_sealed=as_sealed, whole=whole, at_tail=at_tail)
        if found.meta.erased is not None:
            raise StreamExpired(ERASED)
        return found

    async def request_of(self, sid: str, meta: Meta) -> dict[str, Any]:
        """The stream's request, parsed; {} if it has none. Raises as `look_up` does."""
        return (await self.sized_request_of(sid, meta))[0]

    async def sized_request_of(self, sid: str, meta: Meta) -> tuple[dict[str, Any], int]:
        """As `request_of`, and how many characters it has as JSON."""
        asked = (await self.log.requests.of(meta)).fields.get("request")
        if asked is None and self._archive and (archived := await self._archive.find(sid, with_request=True)):
            asked = archived.fields.get("request")
        parsed = await _maybe_in_thread(len(asked) > REPEATED_BYTES, orjson.loads, asked) if asked else None
        return parsed if isinstance(parsed, dict) else {}, len(asked or "")

    async def webhook(self, sid: str, meta: Meta) -> dict[str, Any] | None:
        """What became of the stream's webhook, as its record says it; None if it names none."""
        if meta.webhook is None:
            return None
        hook = await self.log.hooks.read(sid) if meta.has_ended else None
        return webhook_json(meta, hook, await self.log.now_ms())

    async def log_of(self, sid: str, found: Found) -> ReadableLog:
        """The log from which this stream's events are read. Raises StreamExpired if they were erased meanwhile."""
        if found.is_in_redis or not self._archive:
            return self.log
        if log := await self._archive.read_log(sid):
            return log
        raise StreamExpired(ERASED)

    async def erase(self, sid: str, grant: Grant) -> bool:
        """Erase a finished stream's content. True if it is gone everywhere; False if the archive will erase it later.

        Raises StreamRunning.
        """
        meta, is_in_redis = await self.look_up(sid, grant)
        if not meta.has_ended:
            raise StreamRunning("The stream is still running. Cancel it first, or wait until it has ended.")
        if meta.erased is not None and not is_in_redis:
            return True
        redis, keys = self.log.redis, self.log.keys
        now_ms = await self.log.now_ms()
        if self._archive:
            # The order comes first: the archiver, which carries it out, waits for the tombstone.
            await redis.zadd(keys.erasing, {sid: now_ms})
        # Also what is erased: who did so may have died before the request went.
        await self.log.erase(sid, meta, now_ms, by=grant.who)
        deadline = time.monotonic() + ERASURE_WAIT_S
        while self._archive and time.monotonic() < deadline:
            if await redis.zscore(keys.erasing, sid) is None:
                return True
            await asyncio.sleep(ERASURE_POLL_S)
        return self._archive is None

    async def start(
        self,
        body: CreateStream,
        grant: Grant,
        idempotency_key: str | None,
        *,
        is_large: bool = False,
        said: Said | None = None,
        sid: str | None = None,
    ) -> Started:
        """Create a stream and queue it for a worker (an external one starts at once, at epoch 1).

        `said`: by a start in a dialect. `sid`: the stream's id, if it follows from a name of the caller's (given.py);
        the Idempotency-Key then does too. Only a worker's stream can have one.

        Raises StoreFull, RateLimited, TooManyStreams, UnknownModel, UnknownAgent, InvalidInput, or InvalidRequest for
        an Idempotency-Key that is malformed or was used for another request, for metadata beyond `max_metadata_bytes`,
        for an `output_schema` that is none, for more tokens than the tenant may ask for, and for a webhook that nobody
        would send.
        `is_large`: what takes long with it is done in a thread.
        """
        settings = self._settings
        if body.token:
            grant.require(MINT)
            grant.require(READ)  # which is what it opens
            require_ttl(body.token.ttl_s, settings.longest_token_s)
        external = body.producer == EXTERNAL
        limits = await self._creations.limits.of(grant.tenant)
        if not external:
            await _maybe_in_thread(is_large, self._require_allowed, (limits, body))
        agent = await self._agent(body.agent, limits) if body.agent is not None else None
        if agent and "input" in body.model_fields_set:  # whether it takes messages, its app says
            await asyncio.to_thread(require_input, str(body.agent), agent.input_schema, body.input)
        elif not (agent or external):
            await self._require_providers(body.chain, body.provider_options or ())
        if body.output_schema is not None:
            await asyncio.to_thread(require_schema, body.output_schema)
        request = self._request(body, limits)
        if said and said.kept is not None:
            request["echo"] = said.kept
        new = NewStream(
            tenant=grant.tenant,
            sid=sid or new_sid(),
            session=body.session_id or f"s-{new_sid()[:16]}",
            producer=body.producer,
            user=body.user_id,
            agent=body.agent,
            show=_shown(body, agent),
            sentences=body.sentences,
            language=body.language,
            model=next(iter(body.chain), "" if external or agent else settings.default_model),
            request=await _maybe_in_thread(is_large, _stored, request) if request else None,
            metadata=body.metadata,
            on_worker_loss=body.on_worker_loss,
            abandon_after_s=body.abandon_after_s,
            dialect=orjson.dumps({"name": said.name, "model": said.model, "echo": said.echo}) if said else None,
            fold=FOLD,
            webhook=self._webhook(body, grant.tenant),
        )
        digest = ""
        if idempotency_key is not None:
            digest = await _maybe_in_thread(is_large, _digest_of_body, (body, said))
        app = agent.app if agent else None
        return await self._start(new, grant, idempotency_key, digest, app, body.token, is_given=sid is not None)

    async def create_shared(self, new: NewStream, size: int) -> None:
        """A shared stream that is about to have so many bytes. Raises what stops any start."""
        await self._needs.require()
        await self._require_another(new, size)
        await self.log.create(new)
        self._room.take(size)

    async def regenerate(self, sid: str, grant: Grant, idempotency_key: str | None) -> Started:
        """Run the same request again, as a new stream of the same session. Raises as `start` does."""
        meta = (await self.look_up_content(sid, grant, whole=True)).meta
        if meta.is_external or meta.is_shared:
            raise InvalidRequest("An external stream is not run here, so it cannot run again. Start a new stream.")
        limits = await self._creations.limits.of(grant.tenant)
        await self._require_still_allowed(meta, limits)
        if meta.webhook is not None:
            require_webhook(self._settings, meta.webhook, meta.tenant)
        app = (await self._agent(meta.agent, limits)).app if meta.agent is not None else None
        digest = digest_of({"regenerates": sid})
        return await self._start(NewStream.again(sid, meta), grant, idempotency_key, digest, app)

    async def give_input(self, sid: str, grant: Grant, body: GiveInput) -> str:
        """Tell the stream's agent something; returns the input's id. Each call tells it once.

        Raises StreamClosed, InvalidRequest for a stream without agent, BodyTooLarge, or RateLimited while too much of
        it waits.
        """
        await self._require_agents_stream(sid, grant)
        told = body.told()
        if len(orjson.dumps(told)) > MAX_INPUT_BYTES:
            raise BodyTooLarge(f"An input may have {MAX_INPUT_BYTES} bytes as JSON.")
        return (await self.log.inputs.tell(sid, told)).id

    async def decide(self, sid: str, approval_id: str, grant: Grant, body: Decide) -> str:
        """Decide an approval that the stream's agent waits for; returns the decision's id. Repeating it is harmless.

        Raises StreamClosed, ApprovalNotFound, or ApprovalDecided if it was decided otherwise, or by somebody else.
        """
        await self._require_agents_stream(sid, grant)
        decision = {"approve": body.approve, "reason": body.reason, "by": grant.who}
        stands = await self.log.inputs.decide(sid, approval_id, decision)
        if stands.data != decision:
            raise ApprovalDecided("It was decided before, by another call or because nobody decided in time.")
        return stands.id

    async def _require_agents_stream(self, sid: str, grant: Grant) -> None:
        """Raises InvalidRequest for a stream that no agent answers, StreamClosed for one that has ended."""
        meta, is_in_redis = await self.look_up_content(sid, grant)
        if meta.agent is None:
            raise InvalidRequest("No agent answers this stream, so nobody would take it. Start a stream with an agent.")
        if meta.has_ended or not is_in_redis:
            raise StreamClosed("The stream has its terminal event: its agent takes nothing more. Start a new stream.")

    async def cancel(self, sid: str, grant: Grant, reason: str) -> Ended:
        """End a stream now, wherever it runs. Cancelling a stream that has ended is not an error (`already`)."""
        meta = (await self.look_up(sid, grant)).meta
        if meta.has_ended:  # it may be a tombstone, which has no `stopped_after`
            stopped_after = meta.tail if meta.stopped_after is None else meta.stopped_after
            return Ended(meta.state, meta.tail, stopped_after, already=True)
        seized = await self._seizures.seize(sid, CANCELLED, encode_data({"reason": reason, "by": grant.who}))
        if meta.is_external:
            await self._give_place_back(meta.tenant, sid)
        await self._leave_the_line(sid, meta)
        return Ended(seized.state, seized.last_event_id, seized.stopped_after, seized.already)

    async def append(self, sid: str, grant: Grant, body: AppendEvents) -> Appended:
        """Add an external producer's events, all or none, and renew its lease.

        Raises Forbidden, StreamClosed, WriterSuperseded or AppendGap. A stream that is full is ended (StreamClosed).
        """
        pen = await self._producers_pen(sid, grant, body.epoch)
        events = [Unsent(event.event, encode_data(event.data)) for event in body.events]
        append = Append(sid, pen, body.first or 0, events, EXTERNAL_LEASE_S)
        try:
            appended = await self.log.append(append)
        except StreamLimit as full:
            reason = {"code": full.code, "message": "The stream has reached its size limit.", "recoverable": False}
            await self._seizures.seize(sid, ERROR, encode_data(reason))
            await self._give_place_back(grant.tenant, sid)
            raise StreamClosed("The stream reached its limit of events or bytes and was ended.") from None
        if is_terminal(appended.state):
            await self._give_place_back(grant.tenant, sid)
        return appended

    async def heartbeat(self, sid: str, grant: Grant, epoch: int) -> Appended:
        """Renew an external producer's lease. Raises Forbidden, StreamClosed or WriterSuperseded."""
        pen = await self._producers_pen(sid, grant, epoch)
        renewed = await self.log.append(Append(sid, pen, pen.base, (), EXTERNAL_LEASE_S))
        if is_terminal(renewed.state):
            raise StreamClosed("The stream has its terminal event. There is no lease to renew.")
        return renewed

    def _webhook(self, body: CreateStream, tenant: str) -> str | None:
        if body.webhook is not None:
            return require_webhook(self._settings, body.webhook.url, tenant)
        is_default = "webhook" not in body.model_fields_set and self._settings.webhook_keys(tenant)
        return self._settings.webhook_url or None if is_default else None

    def _request(self, body: CreateStream, limits: Limits) -> dict[str, Any]:
        if body.agent is not None:
            return body.agent_request()
        if body.producer == EXTERNAL:
            return body.stated_request()
        return body.provider_request(self._own_max_tokens(limits))

    def _own_max_tokens(self, limits: Limits) -> int:
        """Of a start that does not say."""
        return min(self._settings.max_tokens, limits.max_tokens or self._settings.max_tokens)

    def _require_allowed(self, asked: tuple[Limits, CreateStream]) -> None:
        """Of a worker's stream. Raises UnknownModel, UnknownAgent or InvalidRequest."""
        limits, body = asked
        if body.agent is not None:
            require_agent(limits, body.agent)
            return
        require_models(limits, body.chain, self._settings.default_model)
        require_tokens(limits, body.max_tokens)
        require_options(limits, body.provider_options, body.max_tokens or self._own_max_tokens(limits))

    async def _require_still_allowed(self, meta: Meta, limits: Limits) -> None:
        """What was asked for once may be more than may be asked for now. Raises as `_require_allowed` does."""
        if meta.agent is not None:
            require_agent(limits, meta.agent)
            return
        text = (await self.log.requests.of(meta)).fields.get("request") or "{}"
        request = await _maybe_in_thread(len(text) > REPEATED_BYTES, orjson.loads, text)
        chain = request.get("model")
        require_models(limits, chain if isinstance(chain, list) else [meta.model or ""], self._settings.default_model)
        require_tokens(limits, request.get("max_tokens"))
        require = partial(require_options, limits, max_tokens=request.get("max_tokens"))
        await _maybe_in_thread(len(text) > REPEATED_BYTES, require, request.get("provider_options"))

    async def _agent(self, name: str, limits: Limits) -> Announced:
        """Raises UnknownAgent, which names some that there are."""
        if found := await self.agents.find(name):
            return found
        known = [one for one in await self.agents.known() if limits.agents is None or one in limits.agents]
        if not known:
            raise UnknownAgent("agent: no worker has one. Start a worker with an app: `lastevent up --app`.")
        near = get_close_matches(name, known, n=1)
        meant = f"did you mean `{near[0]}`? " if near else ""
        more = "" if len(known) <= NAMED_AGENTS else f" and {len(known) - NAMED_AGENTS} more (GET /v1/agents)"
        raise UnknownAgent(f"agent: {meant}There are {', '.join(known[:NAMED_AGENTS])}{more}.")

    async def _require_providers(self, chain: list[str], options: Collection[str]) -> None:
        """Of names with a prefix; what one without it means, an alias or a model, a worker decides.

        `options`: the providers that they are for. Those of a misspelt one would be nobody's.
        """
        prefixes = {prefix for prefix, slash, _ in (name.partition("/") for name in chain) if slash}
        if {*prefixes, *options} <= PROVIDERS.keys():
            return
        known = await self.models.known()
        all_of_them = [*PROVIDERS, *(name for name in known.providers if name not in PROVIDERS)]
        providers = ", ".join(all_of_them)
        if not prefixes <= {*all_of_them}:
            aliases = f" There are the aliases {', '.join(known.aliases)}." if known.aliases else ""
            raise UnknownModel(f"model: provider/name, and the providers are {providers}.{aliases}")
        if not {*options} <= {*all_of_them}:
            raise InvalidRequest(f"provider_options: by the name of a provider; they are {providers}.")

    async def _sealed(self, sid: str, whole: bool) -> Meta | None:
        """What the archive has of a stream. None also while the archive is away."""
        if self._archive is None or time.monotonic() < self._asks_archive_from_s:
            return None
        try:
            async with asyncio.timeout(ARCHIVE_ANSWER_S):
                return await self._archive.find(sid, with_request=whole)
        except (ArchiveUnavailable, TimeoutError):
            self._asks_archive_from_s = time.monotonic() + ARCHIVE_PAUSE_S
            return None

    async def _producers_pen(self, sid: str, grant: Grant, epoch: int) -> Pen:
        meta, is_in_redis = await self.look_up_content(sid, grant)
        if not meta.is_external:
            raise Forbidden("A worker writes this stream. Only an external stream accepts events from a producer.")
        current = meta.epoch or 0
        if not meta.has_ended and epoch > current:  # a stream that has ended answers StreamClosed first
            # Only the log creates epochs. The append step would take a newer one for a claim that Redis lost.
            raise WriterSuperseded("This stream has never had that epoch. Use the one that its creation returned.")
        if not is_in_redis:
            raise StreamClosed("The stream has its terminal event and its retention is over.")
        return Pen(epoch, meta.claim or "" if epoch == current else "", meta.base or 0)

    async def _start(
        self,
        new: NewStream,
        grant: Grant,
        key: str | None,
        digest: str,
        app: str | None = None,
        token: ForToken | None = None,
        *,
        is_given: bool = False,
    ) -> Started:
        """`app`: of the agent, if one answers. `token`: what was asked for its `events_url`. `is_given`: the id is."""
        redis = self.log.redis
        await self._needs.require()
        limit = self._settings.max_metadata_bytes
        if new.metadata and len(orjson.dumps(new.metadata)) > limit:  # `regenerate` copies it, also an older release's
            raise InvalidRequest(f"metadata: at most {limit} bytes of JSON (LASTEVENT_MAX_METADATA_BYTES).")
        size = len(new.own_request)
        if key is None:
            await self._require_another(new, size)
            queue = traces.queueing(new.sid, is_external=new.producer == EXTERNAL)
            await self.log.create(replace(new, traceparent=queue.traceparent))
            self._room.take(size)
            reservation = None
        else:
            reservation = await self._reserve(new, key, digest, size, is_given=is_given)
            if reservation.created:
                is_repeated = size <= REPEATED_BYTES
                record = await self._record(reservation.sid, grant, token, is_repeated=is_repeated)
                return Started(record, is_new=False)
            await self._room.require(size)
            queue = traces.queueing(reservation.sid, is_external=new.producer == EXTERNAL)
            new = replace(
                new,
                sid=reservation.sid,
                idempotency=f"{key} {reservation.digest}",
                traceparent=queue.traceparent,
            )
            if not reservation.first:
                await self._take_place(new)
            if is_given:
                # Of a name, even the first caller cannot know. What a living writer puts back is there by then.
                await self.log.servers.require_settled(ENDINGS_WAIT)
                await self.log.create(new, counted_from_ms=COUNTED_FROM_MS)
            else:
                # A second caller cannot know whether the first one has created the stream and Redis has lost it.
                since_ms = None if reservation.first else await reserved_ms(redis, reservation, await self.log.now_ms())
                await self.log.create(new, reserved_ms=since_ms)
            self._room.take(size)
            await mark_created(redis, reservation.key, reservation.sid, reservation.digest)
        if new.producer != EXTERNAL:
            await self._enqueue(new, app)
        queue.end()
        record = await self._record(new.sid, grant, token, new.own_request, is_repeated=size <= REPEATED_BYTES)
        return Started(record, is_new=reservation is None or reservation.first)

    async def _require_another(self, new: NewStream, size: int) -> None:
        """One that was not asked for before. Raises StoreFull, which does not count, RateLimited or TooManyStreams."""
        await self._room.require(size)
        await self._creations.count(new.tenant)
        await self._take_place(new)

    async def _take_place(self, new: NewStream) -> None:
        """For an external stream among those of its tenant that run; the others wait until a worker has one for them.
        Raises TooManyStreams.
        """
        most = (await self._creations.limits.of(new.tenant)).streams_running
        if new.producer != EXTERNAL or most is None or await self.running.take(new.tenant, new.sid, most):
            return
        if self._creations.enforcement.refuses(TooManyStreams.limit):
            raise TooManyStreams(
                f"At most {most} streams may run at once here, and so many do. Nothing was started. End one, or wait."
            )

    async def _give_place_back(self, tenant: str, sid: str) -> None:
        """Of an external stream that has ended. If that fails, the place comes back by itself."""
        with suppress(StoreUnavailable):
            if (await self._creations.limits.of(tenant)).streams_running is not None:
                await self.running.let_go(tenant, sid)

    async def _reserve(self, new: NewStream, key: str, digest: str, size: int, *, is_given: bool) -> Reservation:
        if not is_given:
            require_key(key)
        name = self.log.keys.idempotency(new.tenant, key)
        is_known = await self.log.redis.exists(name)
        if not is_known:
            if is_given and (before := await self._before(new)):
                if before.idempotency_key != (key, digest):
                    raise KeyReused("This id has named another stream. Use a new one for a new request.")
                return Reservation(name, new.sid, digest, first=False, created=True)
            await self._require_another(new, size)
            # If Redis has just lost the key, its stream's writer is about to put both back.
            await self.log.servers.require_settled(ENDINGS_WAIT)
        try:
            return await reserve(self.log.redis, name, new.sid, digest)
        except KeyReused:
            if is_given:
                await self._before(new)  # of one that was erased, nobody knows any more what was asked
            raise

    async def _before(self, new: NewStream) -> Meta | None:
        """The stream that has this given id, whose reservation is over. Raises StreamExpired if it is gone, or erased.

        An archive that is away does not keep anything from being started: it has what is older than a day.
        """
        [meta] = await self.log.read_fields(_LOOKED_UP, new.sid)
        if meta is None:
            meta = await self._sealed(new.sid, whole=False)
        if meta is None and await self.log.redis.zscore(self.log.keys.streams(new.tenant), new.sid) is None:
            return None
        if meta is None or meta.erased is not None:
            raise StreamExpired("A stream of this id has ended, and is gone. Use a new id for a new request.")
        return meta

    async def _record(
        self, sid: str, grant: Grant, asked: ForToken | None, request: bytes = b"", *, is_repeated: bool = True
    ) -> dict[str, Any]:
        """`request`: if it is at hand. `is_repeated`: it is in the record."""
        [meta] = await self.log.read_meta(sid)
        if meta is None:
            meta = (await self.look_up(sid, grant, whole=True)).meta
        else:
            meta = await self.log.at_tail(sid, meta)
            if is_repeated:
                meta = meta.with_request(request.decode()) if request else await self.log.requests.of(meta)
        token = None
        if grant.gives_reading:
            asked = asked or ForToken()
            token = self._auth.token(sid, meta, asked.sub, asked.ttl_s)
        record = {**stream_record(meta, sid, token), "webhook": await self.webhook(sid, meta)}
        if not is_repeated:
            del record["request"]
        return record if meta.epoch is None or not meta.is_external else {**record, "epoch": meta.epoch}

    async def _leave_the_line(self, sid: str, meta: Meta) -> None:
        """An ended stream waits for no place. Left in its line it would have its turn, and be found to have ended."""
        if meta.state != "queued":
            return
        with suppress(StoreUnavailable):
            agent = await self.agents.find(meta.agent) if meta.agent else None
            await self.running.let_go(meta.tenant, sid, app=agent.app if agent else None)

    async def _enqueue(self, new: NewStream, app: str | None) -> None:
        try:
            weight = (await self._creations.limits.of(new.tenant)).weight or 1
            await enqueue(self._queue, self.log.keys, new.sid, app, tenant=new.tenant, weight=weight)
        except LasteventError as refused:
            # The stream exists, so it will run: a sweeper claims what stays queued for 5 s.
            if isinstance(refused, RedisRefuses):
                self._needs.doubt()
            logger.warning("stream %s could not be queued; a worker's sweeper will find it", new.sid)


def _shown(body: CreateStream, agent: Announced | None) -> list[str] | None:
    """What was asked for counts, if anything was; else what the agent says."""
    if body.show is not None:
        return list(dict.fromkeys(body.show))
    return list(agent.show) if agent else None


def _stored(request: dict[str, Any]) -> bytes:
    return orjson.dumps(request)


def _digest_of_body(asked: tuple[CreateStream, Said | None]) -> str:
    """Without `token`, which is about the answer: the stream is the same."""
    body, said = asked
    digested = body.model_dump(exclude_unset=True, exclude={"token"})
    return digest_of(digested if said is None else {**digested, "said": said._asdict()})


async def _maybe_in_thread(is_large: bool, step: Callable[[T], R], value: T) -> R:
    """What takes 20 to 50 ms for 32 MiB; for most requests less than a thread does."""
    return await asyncio.to_thread(step, value) if is_large else step(value)
