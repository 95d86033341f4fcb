"""What each caller may do: API keys for back ends, tokens for phones and browsers (RFC 6750), in one Grant.

A browser's EventSource cannot send a header, so `events_url` carries a token: of that one stream, for reading. Without
keys the server listens on loopback only, every caller is the tenant `default`, and web/door.py keeps web pages out.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Any, NamedTuple

from broker.errors import Forbidden, InsufficientScope, RedisUnavailable, StreamNotFound, Unauthorized
from broker.log.meta import Meta
from broker.log.presence import Names
from broker.tenants.keyring import DEFAULT_TENANT, Doors, Keyring
from broker.tenants.revocations import Revocations
from broker.tenants.scopes import AUDIT, EVERYTHING, INSPECT, MASKED, MINT, READ, VIEWERS, opens
from broker.tenants.token import ANYONE, Token
from broker.tenants.tokens import Minted, Tokens, is_jwt, is_name


class Audience(Enum):
    """Whose eyes a stream's events are for: operators see all of them, users what is not internal (log/event.py)."""

    ALL = "all"
    PUBLIC = "public"


class Grant(NamedTuple):
    """What a caller may do, and with which streams: a tenant's; of a token, those that it opens.

    `who`: the caller's name in the access record. `key`: the id of its key; `token`: its token, if it has no key.
    `audience`: what it sees of events.
    """

    tenant: str
    who: str = "anyone"
    scopes: frozenset[str] = EVERYTHING
    token: Token | None = None
    audience: Audience = Audience.ALL
    key: str | None = None

    @property
    def is_masked(self) -> bool:
        """It reads what has ended, with masks applied. Such a key has no other scope that shows content."""
        return MASKED in self.scopes

    @property
    def is_public(self) -> bool:
        return self.audience is Audience.PUBLIC

    @property
    def is_viewer(self) -> bool:
        """It sees of a record what viewers see."""
        return self.token is not None or not opens(self.scopes, INSPECT, MASKED)

    @property
    def gives_reading(self) -> bool:
        """Whether an `events_url` has a token for it: nobody gives away what he has not."""
        return opens(self.scopes, MINT) and opens(self.scopes, READ)

    @property
    def sees_of_viewers(self) -> Names:
        """Of those who follow a stream that it opens. All may see how many they are."""
        if self.token:
            return Names.USERS if VIEWERS in self.scopes else Names.NONE
        return Names.ALL if opens(self.scopes, INSPECT) else Names.NONE

    def masked(self) -> Grant:
        return self._replace(scopes=frozenset({MASKED}))

    def require(self, *scopes: str) -> None:
        """Raises InsufficientScope unless one of them is held."""
        if not opens(self.scopes, *scopes):
            raise InsufficientScope(scopes)

    def opens(self, sid: str, meta: Meta) -> bool:
        """Whether this stream exists for this caller."""
        return meta.tenant == self.tenant and (self.token is None or self.token.opens(sid, meta.session, meta.user))

    def names_stream(self, sid: str) -> bool:
        """Whether it opens this stream by its id alone, if it is of the tenant."""
        return self.token is None or (self.token.streams is not None and sid in self.token.streams)

    def names(self, form: str) -> str:
        """What the access record calls a reading in this form: it says for whose eyes it was."""
        return f"public-{form}" if self.is_public else form

    def narrowed(self, wanted: Audience | None) -> Grant:
        """For a caller that asked for this audience. Raises Forbidden if it may not see so much."""
        if wanted is Audience.ALL and self.is_public:
            raise Forbidden("This credential shows what users see. `audience=all` takes an API key that may inspect.")
        return self if wanted is None else self._replace(audience=wanted)


class Auth:
    """The keys and tokens that this server knows. `is_open`: there are no keys, and every caller may do everything.

    `has_masks`: without them a key that sees masked content is refused.
    """

    def __init__(
        self,
        keyring: Keyring,
        tokens: Tokens,
        revocations: Revocations,
        read_token_ttl_s: int,
        *,
        has_masks: bool = False,
    ) -> None:
        self._keyring = keyring
        self._tokens = tokens
        self._revocations = revocations
        self._read_token_ttl_s = read_token_ttl_s
        self._has_masks = has_masks

    @property
    def is_open(self) -> bool:
        return self._keyring.doors is Doors.OPEN

    @property
    def is_ready(self) -> bool:
        """Whether tokens can be made and checked."""
        return self.is_open or (self._keyring.doors is Doors.KEYED and self._tokens.is_ready)

    def open_grant(self) -> Grant | None:
        """Everybody's, if there are no keys. Raises RedisUnavailable while that is not known."""
        if self._keyring.doors is Doors.UNKNOWN:
            raise RedisUnavailable("The server is still connecting to Redis, which has the keys. Try again shortly.")
        return Grant(DEFAULT_TENANT) if self.is_open else None

    async def grant(self, credential: str) -> Grant:
        """What a key or a token opens.

        Raises Unauthorized, InvalidToken, TokenExpired, TokenRevoked, Forbidden; RedisUnavailable, IssuerUnavailable.
        """
        if key := self._keyring.find(credential):
            if MASKED in key.scopes and not self._has_masks:
                raise Forbidden("This key shows content with masks, and this server has none: LASTEVENT_REDACT_FILE.")
            sees_all = opens(key.scopes, INSPECT, AUDIT, MASKED)
            audience = Audience.ALL if sees_all else Audience.PUBLIC
            return Grant(key.tenant, f"key:{key.id}", key.scopes, audience=audience, key=key.id)
        if not is_jwt(credential):
            raise Unauthorized("Send the header Authorization: Bearer <an API key>, or a token that is valid here.")
        token = self._tokens.verified(credential)
        await self._revocations.require_good(token)
        return Grant(token.tenant, f"user:{token.subject}", token.scopes, token, Audience.PUBLIC)

    def knows(self, credential: str) -> bool:
        """Whether it was good when it was looked at before. A look-up: who guesses gains nothing by it."""
        return self._tokens.knows(credential) or self._keyring.find(credential) is not None

    def is_good(self, grant: Grant) -> bool:
        """Whether the credential behind it would still be let in: a connection outlives the check at its beginning."""
        if grant.token:
            return self._revocations.is_good(grant.token)
        return self._keyring.is_good(grant.key) if grant.key else self.is_open

    def token(self, sid: str, meta: Meta, subject: str | None = None, ttl_s: int | None = None) -> str | None:
        """A token that reads this stream, for `events_url`; None if open. Its subject: the stream's user, unless there
        is another. Raises RedisUnavailable; InvalidRequest if it would live longer than tokens may.
        """
        if self.is_open:
            return None
        named = subject or (meta.user if is_name(meta.user) else None) or ANYONE
        opened = {"streams": [sid]}
        ttl_s = ttl_s or self._read_token_ttl_s
        return self._tokens.mint(meta.tenant, named, frozenset({READ}), opened, ttl_s).text

    def mint(self, tenant: str, subject: str, scopes: frozenset[str], opened: Mapping[str, Any], ttl_s: int) -> Minted:
        """`opened`: one of `streams`, `sessions` and `own`. They are names: what is another tenant's, or is not there,
        they do not open. Raises as `token` does.
        """
        return self._tokens.mint(tenant, subject, scopes, opened, ttl_s)


def require_visible(sid: str, meta: Meta, grant: Grant) -> None:
    """Raises StreamNotFound for another tenant's stream, or one that a token does not open: for this caller it does not
    exist (G8).
    """
    if not grant.opens(sid, meta):
        raise StreamNotFound("There is no stream with this id.")
