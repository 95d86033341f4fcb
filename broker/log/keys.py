"""Every Redis key, on one screen.

| key                           | type    | holds                                       | its life                   |
|-------------------------------|---------|---------------------------------------------|----------------------------|
| le:{sid}:log                  | stream  | entry <n>-0: k kind, d JSON data, t time ms | retention, see below       |
| le:{sid}:meta                 | hash    | see meta.py                                 | retention, see below       |
| le:{sid}:request              | string  | the request of this stream, JSON            | its last holder's          |
| le:{sid}:holders              | zset    | sid that needs this request → until (ms)    | its last holder's          |
| le:{sid}:live                 | channel | each batch as it is appended (prelude.lua)  | -                          |
| le:{sid}:inputs               | stream  | what its agent is told (inputs.py)          | the log's                  |
| le:{sid}:hook                 | hash    | its ending, for its webhook (hooks.py)      | 4 days after the ending    |
| le:{sid}:producers            | hash    | of a shared stream: produce.lua             | the log's                  |
| le:{sid}:views                | hash    | view's id → its record; +… → sum (views.py) | archived, or retention     |
| le:{sid}:crowd                | hash    | server → connections without a record       | a day, renewed; its erasure|
| le:{sid}:presence             | channel | who came and who went (presence.py)         | -                          |
| le:leases                     | zset    | sid → when the sweeper looks next (ms)      | removed at the ending      |
| le:unarchived                 | zset    | sid, finished, not archived → next look     | removed when archived      |
| le:erasing                    | zset    | sid, to erase in the archive → since (ms)   | removed when erased there  |
| le:webhooks                   | zset    | sid, webhook pending → next look (ms)       | removed when it is settled |
| le:archiver                   | string  | which worker archives                       | 10 s after its last beat   |
| le:views                      | zset    | sid with records to archive → since (ms)    | removed when archived      |
| le:models                     | hash    | what workers can run (models.py)            | a week, renewed by workers |
| le:agents                     | hash    | agent → its app, schema, … (agents.py)      | a week, renewed by workers |
| le:breaker:<provider/model>   | string  | its failures in a row, of all workers       | 30 s                       |
| le:tiers                      | zset    | server process → last sign of life (ms)     | a day, or at its end       |
| le:servers                    | zset    | Redis server → since when it is in use (ms) | a week, the newest 8       |
| le:secret                     | string  | signs tokens (secret.py)                    | -                          |
| le:keys                       | hash    | id → API key, hashed (tenants/keyring.py)   | -                          |
| le:keys:changed               | channel | id of each key made or revoked              | -                          |
| le:revoked:<tenant>           | zset    | what is revoked → until (tenants/…)         | the longest token's        |
| le:limits                     | hash    | tenant → its limits, JSON (tenants/…)       | -                          |
| le:rates:{<tenant>/…}         | limits' | creations of a minute (tenants/creations)   | two minutes                |
| le:shares, le:shares:<app>    | hash    | tenant → its virtual time (queue.py)        | a week after the last job  |
| le:running:<tenant>           | zset    | sid with a slot → its place's end (ms)      | 40 s, renewed by workers   |
| le:aside:<tenant>             | zset    | sid that runs without a slot → the same     | the same                   |
| le:parked:<tenant>            | zset    | plain sid that waits for a place → since µs | a week after the last one  |
| le:parked:<tenant>:<app>      | zset    | those of this app's agents                  | the same                   |
| le:lines                      | set     | <tenant> or <tenant>:<app> with parked ones | the same                   |
| le:slots                      | zset    | slots of a worker, its name → until (s)     | a week, renewed by workers |
| le:deeds                      | stream  | acts, until they are archived (deeds.py)    | archived, or retention     |
| le:erasures                   | hash    | id → an erasure of a person, JSON           | a week after its end       |
| le:erasures:<id>              | set     | sid that it has erased                      | removed at its end         |
| le:erasures:<id>:sessions     | set     | session that those streams had              | removed at its end         |
| le:ds:<tenant>:<path>         | hash    | the shared stream of a path (paths.py)      | its stream's, and its forks'|
| le:input                      | channel | sid of each stream whose agent is told      | -                          |
| le:seized                     | channel | sid of each stream ended by seizure         | -                          |
| le:idem:<tenant>:<key>        | string  | sid, digest of the body, reserved | created | 24 h                       |
| le:streams:<tenant>           | zset    | sid → created (ms)                          | retention + LISTING_SLACK  |
| le:sessions:<tenant>          | zset    | session → its newest stream's created       | the same, and trimmed      |
| le:session:<tenant>:<session> | zset    | sid → created (ms); archived ones stay here | the same, and trimmed      |
|   a channel of the same name  | channel | sid of each stream that is listed there     | -                          |
| le:calls:<tenant>:<session>   | set     | key of each call its agents made (caps.py)  | a week after the last one  |
| le:cost:<tenant>:<session>    | hash    | sid → what it cost, millionths of a dollar  | a week after the last one  |
| le:jobs, arq:*                | arq's   | streams that wait for a worker              | removed by arq, or a TTL   |
| le:jobs:<app>                 | arq's   | those that wait for a worker of this app    | removed by arq             |
| le:probe                      | -       | never there: needs.py asks what may be done | -                          |
| le:queued                     | channel | sid of each stream put into arq's queue     | -                          |

Retention starts at a stream's ending; with an archive, when that holds the stream (scripts/archived.lua): nothing
leaves Redis before (G7). A finished stream is in le:leases until it is in le:unarchived, so one index always names it.
A request is kept once, under the first stream that had it; `regenerate` refers to it. Its holders are the streams that
do, that one included: each until its own keys end, for ever (inf) while that is not known. See request.py.
`{sid}` is a hash tag: one stream's keys share a cluster slot, and each script touches one stream only.
`le:leases` is an index, written before `meta`. Its entries are checked against `meta`, which is the authority.
"""

from __future__ import annotations

from typing import NamedTuple

SCHEMA = 2
"""Of a stream's meta. 2: while a worker writes, `tail`, `events` and `bytes` may be behind the log. Both releases read
both: of 1 the log says the same."""

LISTING_SLACK_S = 7 * 86_400
"""After its creation a stream stays listed for its retention and this long: a zset must not grow for ever."""


class StreamKeys(NamedTuple):
    log: str
    meta: str
    live: str
    inputs: str
    request: str
    holders: str
    hook: str
    producers: str


class Keys:
    """The names of all keys under one prefix."""

    def __init__(self, prefix: str = "le:") -> None:
        self.prefix = prefix
        self.leases = f"{prefix}leases"
        self.jobs = f"{prefix}jobs"
        self.queued = f"{prefix}queued"
        self.seized = f"{prefix}seized"
        self.input = f"{prefix}input"
        self.servers = f"{prefix}servers"
        self.unarchived = f"{prefix}unarchived"
        self.archiver = f"{prefix}archiver"
        self.erasing = f"{prefix}erasing"
        self.views = f"{prefix}views"
        self.webhooks = f"{prefix}webhooks"
        self.tiers = f"{prefix}tiers"
        self.models = f"{prefix}models"
        self.agents = f"{prefix}agents"
        self.secret = f"{prefix}secret"
        self.api_keys = f"{prefix}keys"
        self.api_keys_changed = f"{prefix}keys:changed"
        self.limits = f"{prefix}limits"
        self.rates = f"{prefix}rates"
        self.deeds = f"{prefix}deeds"
        self.erasures = f"{prefix}erasures"
        self.lines = f"{prefix}lines"
        self.slots = f"{prefix}slots"
        self.probe = f"{prefix}probe"

    def stream(self, sid: str) -> StreamKeys:
        base = f"{self.prefix}{{{sid}}}:"
        return StreamKeys(*(f"{base}{name}" for name in StreamKeys._fields))

    def views_of(self, sid: str) -> str:
        return f"{self.prefix}{{{sid}}}:views"

    def crowd_of(self, sid: str) -> str:
        return f"{self.prefix}{{{sid}}}:crowd"

    def presence_of(self, sid: str) -> str:
        return f"{self.prefix}{{{sid}}}:presence"

    def idempotency(self, tenant: str, key: str) -> str:
        return f"{self.prefix}idem:{tenant}:{key}"

    def jobs_of(self, app: str | None) -> str:
        """The queue of an app's streams; of plain ones, without an app."""
        return self.jobs if app is None else f"{self.jobs}:{app}"

    def revoked(self, tenant: str) -> str:
        return f"{self.prefix}revoked:{tenant}"

    def erased_by(self, erasure: str) -> str:
        return f"{self.prefix}erasures:{erasure}"

    def sessions_erased_by(self, erasure: str) -> str:
        return f"{self.prefix}erasures:{erasure}:sessions"

    def shares(self, app: str | None) -> str:
        return f"{self.prefix}shares" if app is None else f"{self.prefix}shares:{app}"

    def running(self, tenant: str) -> str:
        return f"{self.prefix}running:{tenant}"

    def aside(self, tenant: str) -> str:
        return f"{self.prefix}aside:{tenant}"

    def parked(self, line: str) -> str:
        return f"{self.prefix}parked:{line}"

    def breaker(self, model: str) -> str:
        return f"{self.prefix}breaker:{model}"

    def streams(self, tenant: str) -> str:
        return f"{self.prefix}streams:{tenant}"

    def sessions(self, tenant: str) -> str:
        return f"{self.prefix}sessions:{tenant}"

    def session(self, tenant: str, session: str) -> str:
        return f"{self.prefix}session:{tenant}:{session}"

    def path(self, tenant: str, path: str) -> str:
        return f"{self.prefix}ds:{tenant}:{path}"

    def calls(self, tenant: str, session: str) -> str:
        return f"{self.prefix}calls:{tenant}:{session}"

    def cost(self, tenant: str, session: str) -> str:
        return f"{self.prefix}cost:{tenant}:{session}"
