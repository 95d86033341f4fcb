"""Settings: the environment, read once at start, each checked, each error naming its variable.

They are frozen. An option that overrides one makes a copy (`with_options`), which is checked in the same way.
"""

from __future__ import annotations

import os
import re
from base64 import b64decode
from collections.abc import Iterable, Iterator, Mapping
from difflib import get_close_matches
from ipaddress import ip_network
from pathlib import Path
from shlex import quote
from typing import Annotated, Any, Literal

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from broker.store.archive_url import parse_archive_url
from broker.store.host import require_http_url
from broker.store.redis_url import parse_redis_url, shown_redis_url
from broker.store.webhook_url import Allowed, read_allowed, target_of

PREFIX = "LASTEVENT_"
EVERYBODY = "*"
LOOPBACK = ("127.0.0.1", "::1", "localhost")

SECRET_CHARACTERS = 32
"""Of hex digits, that is 128 bits. Whoever reads `/views` could try shorter ones on the keys' fingerprints."""

WEBHOOK_SECRET = "whsec_"
"""What one begins with (Standard Webhooks)."""

NO_ARCHIVE = "No LASTEVENT_ARCHIVE_URL: there is no archive; streams are gone when LASTEVENT_RETENTION_S is over."

OTHER_VARIABLES = frozenset({"LASTEVENT_URL", "LASTEVENT_API_KEY", "LASTEVENT_LONG_TESTS"})
"""Of the command as a client, and of the tests."""

SECRET_FILES = ("api_keys", "masked_keys", "token_secret", "webhook_secrets", "redis_url", "archive_url")
"""Settings that may be in a file instead, as orchestrators mount secrets: LASTEVENT_<NAME>_FILE is its path. The two
addresses may hold a password."""

MAX_SECRET_FILE_BYTES = 65_536

COMPOSE_PORT = "LASTEVENT_PORT"
COMPOSE_VARIABLES = frozenset(
    {
        *("LASTEVENT_NET", "LASTEVENT_TLS_DIR", "LASTEVENT_TLS_PORT", "LASTEVENT_TLS_ADDRESS"),
        *("LASTEVENT_POSTGRES_PASSWORD", "LASTEVENT_POSTGRES_READER_PASSWORD"),
        *("LASTEVENT_VALKEY_SERVER_PASSWORD", "LASTEVENT_VALKEY_WORKER_PASSWORD"),
    }
)
"""What compose.yaml takes from its .env, which a shell may have read too."""

PLAIN_HTTP = (
    "This is plain HTTP: whoever is on the way reads keys, tokens and answers. Something in front of it must speak TLS."
)


PROVIDERS: Mapping[str, tuple[tuple[str, ...], ...]] = {
    "anthropic": (
        *(("ANTHROPIC_API_KEY",), ("ANTHROPIC_AUTH_TOKEN",), ("ANTHROPIC_PROFILE",)),
        ("ANTHROPIC_FEDERATION_RULE_ID", "ANTHROPIC_ORGANIZATION_ID", "ANTHROPIC_IDENTITY_TOKEN"),
        ("ANTHROPIC_FEDERATION_RULE_ID", "ANTHROPIC_ORGANIZATION_ID", "ANTHROPIC_IDENTITY_TOKEN_FILE"),
        *(("ANTHROPIC_CONFIG_DIR",), ("ANTHROPIC_BASE_URL",)),
    ),
    "openai": (("OPENAI_API_KEY",), ("OPENAI_BASE_URL",)),
    "openai-chat": (("OPENAI_API_KEY",), ("OPENAI_BASE_URL",)),
    "gemini": (
        *(("GOOGLE_API_KEY",), ("GEMINI_API_KEY",), ("GOOGLE_GEMINI_BASE_URL",), ("GOOGLE_VERTEX_BASE_URL",)),
        *(("GOOGLE_GENAI_USE_ENTERPRISE",), ("GOOGLE_GENAI_USE_VERTEXAI",)),
    ),
}
"""Each built-in provider by the name that a model begins with, and what sets it up, as its SDK reads it: one of these
groups of variables, all of it."""

SWITCHES = frozenset({"GOOGLE_GENAI_USE_ENTERPRISE", "GOOGLE_GENAI_USE_VERTEXAI"})
"""They count by their value: the SDK takes `true` and `1`."""

PROVIDER_VARIABLES = frozenset(name for groups in PROVIDERS.values() for group in groups for name in group)

_PART = r"[A-Za-z0-9_:@+\[\]-][A-Za-z0-9._:@+\[\]-]*"
MODEL = rf"^{_PART}(/{_PART})*$"
"""provider/name, or a name alone: an alias, or a model's own. Providers' names have slashes, and marks such as `[free]`
and `:batch`. A part that begins with a dot could lead elsewhere: Gemini's API has the name in its path."""

MODEL_CHARACTERS = 193


class SettingsError(Exception):
    """A setting cannot be used. The message has a line for each: its variable or its option, and what is wrong."""


class Settings(BaseSettings):
    model_config = SettingsConfigDict(
        env_prefix=PREFIX, extra="ignore", frozen=True, allow_inf_nan=False, hide_input_in_errors=True
    )

    redis_url: str = "redis://127.0.0.1:6379/0"
    key_prefix: str = Field("le:", pattern=r"^[A-Za-z0-9_.-]{0,30}:?$")

    # The door
    api_keys: Annotated[tuple[SecretStr, ...], NoDecode] = ()
    """Bearer secrets, separated by commas."""
    masked_keys: Annotated[tuple[SecretStr, ...], NoDecode] = ()
    """Bearer secrets that may only read, what has ended, and with the masks of `redact_file` applied."""
    token_secret: Annotated[tuple[SecretStr, ...], NoDecode] = ()
    """What signs tokens, separated by commas: the first signs, all are accepted. Empty: random, kept in Redis."""
    issuers: Path | None = None
    """Whose tokens are accepted besides our own, TOML (docs/API.md, tokens)."""
    token_audience: str = Field("lastevent", min_length=1, max_length=200)
    token_max_ttl_s: int = Field(86_400, gt=0)
    console: Literal["on", "off"] = "on"
    """off: no page at `/` and no /openapi.json."""
    trusted_proxies: Annotated[tuple[str, ...], NoDecode] = ()
    """Networks whose X-Forwarded-For is believed."""
    cors_origins: Annotated[tuple[str, ...], NoDecode] = ()
    cors_credentials: bool = False
    """Whether a page of those origins may send cookies, which something in front of the servers may ask for."""
    read_token_ttl_s: int = Field(86_400, gt=0)
    """A browser reconnects with the address it has: a token must outlive the stream's retention, or it would be 401."""

    # Callers' limits; a tenant's own are set by `lastevent limits`
    limits: Literal["enforce", "observe"] = "enforce"
    """observe: they are counted, and nothing is refused."""
    connections_per_address: int = Field(2000, ge=1)
    """A phone company's one address is thousands of phones. IPv6 counts by /64."""
    unauthorized_per_minute: int = Field(60, ge=1)
    """Of an address, before its credential is looked at."""
    creations_per_minute: int = Field(600, ge=1)
    """Of a tenant, as the next two. The tenant `default` has none of the three unless they are set for it."""
    streams_running: int = Field(500, ge=1)
    viewers_per_tenant: int | None = Field(None, ge=1)
    """None: half of `max_viewers`."""
    viewers_per_subject: int = Field(50, ge=1)
    allowed_models: Annotated[tuple[str, ...], NoDecode] = ()
    """Empty: all. An alias counts by its name."""
    max_tokens_limit: int = Field(128_000, ge=1)

    # The log
    retention_s: float = Field(86_400, gt=0)
    max_events: int = Field(150_000, ge=2)
    """Models give up to 128,000 tokens, each at most an event of its own; of 100 bytes on average."""
    max_bytes: int = Field(16 * 2**20, ge=1024)
    store_reserve: float = Field(0.2, ge=0, lt=1)
    """The part of Redis' maxmemory that no new stream may take: what runs needs it to reach its end."""

    # The archive
    archive_url: str = ""
    """sqlite:///path or postgresql://…; empty: there is none, and streams are gone when their retention is over."""
    archive_after_s: float = Field(10, ge=0)
    """A finished stream is archived when it has settled: what Redis may lose of it is put back within a lease."""
    archive_retention_s: Annotated[dict[str, float], NoDecode] = {}
    """How long the archive keeps content: seconds, or tenant=seconds,… (`*`: the others). Default: for ever."""
    seal_key: Path | None = None
    """The Ed25519 private key, PEM; a worker's alone. Beside a SQLite archive it is made if it is not there."""
    seal_public_keys: Path | None = None
    """The public keys that seals are checked with, PEM."""
    seal_timestamps: str = ""
    """The URL of an authority that stamps the heads with its time (RFC 3161), once a day."""
    seal_heads: str = ""
    """A file, or a URL, that keeps the head of each chain of seals outside of the database."""
    redact_file: Path | None = None
    """Masks for exports, and for callers with one of `masked_keys` (docs/AUDIT.md)."""

    # Connections
    max_head_bytes: int = Field(32_768, ge=8192)
    """Of a request's line and headers. nginx' own default is as much; a token has far less."""
    head_timeout_s: float = Field(10, gt=0)
    request_timeout_s: float = Field(60, gt=0)
    """For a whole request: 1 MiB in a minute is 17 KB/s, a bad phone."""
    max_connections: int = Field(25_000, ge=1)
    """For each process; and below its descriptors, 256 of which are kept back."""

    # The access record
    view_records_per_stream: int = Field(1000, ge=1)
    """Beyond it, connections are summed up by caller (log/views.py): reconnects must not fill Redis and the archive."""

    # The SSE tier
    max_body_bytes: int = Field(2**20, ge=1024)
    max_request_bytes: int = Field(32 * 2**20, ge=1024)
    """Of a start: as much as providers take, photos in base64 for the most part."""
    max_metadata_bytes: int = Field(16 * 1024, ge=2)
    """Metadata is in each record, listing and copy of its stream."""
    listing_bytes: int = Field(2**20, ge=1024)
    max_viewers: int = Field(20_000, ge=1)
    """For each process: beyond it memory and latency suffer for all; a load balancer tries another process."""
    viewers_per_stream: int = Field(10_000, ge=1)
    """For each process, as the next two."""
    viewers_per_token: int = Field(5, ge=1)
    """A phone, its dead connections, a second tab."""
    connects_per_minute: int = Field(60, ge=1)
    """With one token."""
    viewer_stall_s: float = Field(60, gt=0)
    socket_message_bytes: int = Field(256 * 1024, ge=1024)
    """Of a message from a client: a start with its texts. It is held in memory until it is whole."""
    socket_follows: int = Field(64, ge=1)
    """Streams and sessions on one socket."""
    dialect_abandon_s: int = Field(60, ge=0, le=86_400)
    """Of starts by clients of others that have no way to come back: after so long without a viewer. 0: they run on."""
    heartbeat_s: float = Field(4, gt=0)
    drain_s: float = Field(10, gt=0)

    # The workers
    default_model: str = Field("anthropic/claude-sonnet-5-5", pattern=MODEL, max_length=MODEL_CHARACTERS)
    max_tokens: int = Field(8192, ge=1)
    concurrency: int = Field(500, ge=1)
    models_file: Path | None = None
    """More providers, aliases and prices, TOML (docs/API.md, models)."""
    prices_update: bool = False
    """Whether workers fetch newer prices from the internet."""
    standin: bool = False
    """Whether the stand-in, which is no model, answers in the place of providers that are not set up."""
    provider_silence_s: float = Field(60, gt=0)
    provider_idle_s: float | None = Field(None, gt=0)
    """How long an answer may consist of signs of life alone; None: 10 × `provider_silence_s`."""
    provider_line_bytes: int = Field(4 * 2**20, ge=1024)
    """One line, and one event, of a provider's answer: it is joined in memory, in the loop of every generation."""
    provider_bytes: int = Field(64 * 2**20, ge=1024)
    """One attempt's answer on the wire: 128,000 deltas of 130 to 300 bytes are 17 to 38 MB."""
    worker_drain_s: float = Field(30, ge=0)

    # Agents
    agent_wait_s: float = Field(300, gt=0)
    """How long an agent's stream waits while no worker has that agent."""
    agent_blocked_s: float = Field(5, gt=0)
    """How long an agent's code may hold up its process; for twice as long, and the process is killed."""
    approval_timeout_s: float = Field(600, gt=0)
    max_turns: int | None = Field(None, ge=1)
    """Ceilings over what agents allow themselves, as the next three; None: an agent's own limits alone."""
    max_tool_calls: int | None = Field(None, ge=0)
    session_tool_calls: int | None = Field(None, ge=0)
    session_cost_usd: float | None = Field(None, ge=0)

    # Webhooks
    webhook_url: str = ""
    """For the streams that name none, of tenants that have a secret."""
    webhook_secrets: Annotated[dict[str, tuple[SecretStr, ...]], NoDecode] = {}
    """What signs: whsec_…, or tenant=whsec_…,… (`*`: the others). Several of one tenant: all of them sign."""
    webhook_allow: Annotated[tuple[str, ...], NoDecode] = ()
    """Hosts and networks of one's own that webhooks may reach, by http too; beside the internet."""

    # Operation
    admin_port: int | None = Field(None, ge=0, le=65_535)
    """Of /metrics, /readyz and /healthz; None: 9464 where it is free, under `up`, `serve` and `work`. 0: none."""
    admin_host: str = "127.0.0.1"
    log_libraries: bool = False
    """Whether libraries write as much as we do: prompts and keys among it."""
    log_level: str = Field("warning", pattern=r"^(debug|info|warning|error)$")

    @field_validator(
        *("api_keys", "masked_keys", "token_secret", "cors_origins", "trusted_proxies", "allowed_models"),
        *("webhook_allow",),
        mode="before",
    )
    @classmethod
    def _split(cls, value: object) -> object:
        return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value

    @field_validator("redis_url")
    @classmethod
    def _is_redis(cls, url: str) -> str:
        parse_redis_url(url)
        return url

    @field_validator("archive_url")
    @classmethod
    def _is_archive(cls, url: str) -> str:
        if url:
            parse_archive_url(url)
        return url

    @field_validator("seal_heads")
    @classmethod
    def _is_a_place(cls, where: str) -> str:
        if where.lower().startswith(("http:", "https:")):
            require_http_url(where)
        return where

    @field_validator("archive_retention_s", mode="before")
    @classmethod
    def _by_tenant(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        parts = [part.strip() for part in value.split(",") if part.strip()]
        pairs = [part.rpartition("=") for part in parts]
        return {tenant or EVERYBODY: seconds for tenant, _, seconds in pairs}

    @field_validator("archive_retention_s")
    @classmethod
    def _are_positive(cls, kept: dict[str, float]) -> dict[str, float]:
        if any(not 0 < seconds < float("inf") for seconds in kept.values()):
            raise ValueError("give seconds, or tenant=seconds,tenant=seconds (* for the others), each above 0")
        return kept

    @field_validator("webhook_secrets", mode="before")
    @classmethod
    def _secrets_by_tenant(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        secrets: dict[str, list[str]] = {}
        for part in filter(None, map(str.strip, value.split(","))):
            tenant, equals, secret = part.partition("=")  # base64 may end in one, too
            if not equals or tenant.startswith(WEBHOOK_SECRET):
                tenant, secret = EVERYBODY, part
            secrets.setdefault(tenant.strip(), []).append(secret.strip())
        return {tenant: tuple(each) for tenant, each in secrets.items()}

    @field_validator("webhook_secrets")
    @classmethod
    def _are_webhook_secrets(cls, secrets: dict[str, tuple[SecretStr, ...]]) -> dict[str, tuple[SecretStr, ...]]:
        for secret in (secret for each in secrets.values() for secret in each):
            if not 24 <= len(_webhook_key(secret)) <= 64:
                raise ValueError(
                    "each is whsec_ and 24 to 64 bytes in base64, or tenant=whsec_…; make one with: "
                    "echo whsec_$(openssl rand -base64 32)"
                )
        return secrets

    @field_validator("webhook_allow")
    @classmethod
    def _are_hosts_or_networks(cls, parts: tuple[str, ...]) -> tuple[str, ...]:
        read_allowed(parts)
        return parts

    @field_validator("api_keys", "masked_keys", "token_secret")
    @classmethod
    def _long_enough(cls, keys: tuple[SecretStr, ...]) -> tuple[SecretStr, ...]:
        if any(len(key.get_secret_value()) < SECRET_CHARACTERS for key in keys):
            raise ValueError(f"each needs at least {SECRET_CHARACTERS} characters; make one with: openssl rand -hex 24")
        if not all(key.get_secret_value().isascii() and key.get_secret_value().isprintable() for key in keys):
            raise ValueError("a key travels in an HTTP header: ASCII only; make one with: openssl rand -hex 24")
        return keys

    @field_validator("trusted_proxies")
    @classmethod
    def _are_networks(cls, networks: tuple[str, ...]) -> tuple[str, ...]:
        for name in networks:
            try:
                is_everybody = ip_network(name, strict=False).prefixlen == 0
            except ValueError:
                raise ValueError("each is an address, or a network such as 10.0.0.0/8 or fd00::/8") from None
            if is_everybody:
                raise ValueError("a network of all addresses would let every client choose the address it counts as")
        return networks

    @field_validator("cors_origins")
    @classmethod
    def _are_origins(cls, origins: tuple[str, ...]) -> tuple[str, ...]:
        # Apps have schemes of their own: capacitor://localhost, ionic://localhost, tauri://localhost, chrome-extension://id.
        if not all(re.fullmatch(r"[a-z][a-z0-9+.-]*://[^/\s]+/?", origin, re.ASCII) for origin in origins):
            raise ValueError("each origin is a scheme and a host, such as https://app.example.com")
        return tuple(origin.rstrip("/") for origin in origins)  # browsers send none at the end

    @model_validator(mode="after")
    def _fits_together(self) -> Settings:
        if self.masked_keys and not self.api_keys:
            raise ValueError(
                "LASTEVENT_MASKED_KEYS needs LASTEVENT_API_KEYS: without those, every caller may do everything"
            )
        if self.masked_keys and not self.redact_file:
            raise ValueError("LASTEVENT_MASKED_KEYS needs LASTEVENT_REDACT_FILE, which says what they may not see")
        if set(self.keys) & {key.get_secret_value() for key in self.masked_keys}:
            raise ValueError("LASTEVENT_MASKED_KEYS and LASTEVENT_API_KEYS share a key: it cannot be both")
        if self.webhook_url:
            try:
                target_of(self.webhook_url, self.webhooks_may_reach)
            except ValueError as error:
                raise ValueError(f"LASTEVENT_WEBHOOK_URL: {error}") from None
            if not self.webhook_secrets:
                raise ValueError("LASTEVENT_WEBHOOK_URL needs LASTEVENT_WEBHOOK_SECRETS: webhooks are signed")
        return self

    @property
    def webhooks_may_reach(self) -> Allowed:
        return read_allowed(self.webhook_allow)

    def webhook_keys(self, tenant: str) -> list[bytes]:
        """What signs this tenant's webhooks, the first first. Empty: it can have none."""
        secrets = self.webhook_secrets.get(tenant, self.webhook_secrets.get(EVERYBODY, ()))
        return [_webhook_key(secret) for secret in secrets]

    def archive_retention(self, tenant: str) -> float | None:
        return self.archive_retention_s.get(tenant, self.archive_retention_s.get(EVERYBODY))

    @property
    def masked(self) -> tuple[str, ...]:
        return tuple(key.get_secret_value() for key in self.masked_keys)

    @property
    def token_secrets(self) -> tuple[bytes, ...]:
        return tuple(secret.get_secret_value().encode() for secret in self.token_secret)

    @property
    def longest_token_s(self) -> int:
        """Of ours. An `events_url` may live longer than what others are given: its setting is older."""
        return max(self.token_max_ttl_s, self.read_token_ttl_s)

    @property
    def keys(self) -> tuple[str, ...]:
        return tuple(key.get_secret_value() for key in self.api_keys)


def _webhook_key(secret: SecretStr) -> bytes:
    """Empty: it is none."""
    text = secret.get_secret_value()
    try:
        return b64decode(text.removeprefix(WEBHOOK_SECRET), validate=True) if text.startswith(WEBHOOK_SECRET) else b""
    except ValueError:
        return b""


def variables_of(name: str) -> list[str]:
    """Those that set this built-in provider up, each once."""
    return list(dict.fromkeys(variable for group in PROVIDERS[name] for variable in group))


def configured_by(name: str) -> str | None:
    """What sets this built-in provider up: a variable, or a file of its SDK's; None if nothing does.

    It says no more than what the SDK would try: the key may be wrong.
    """
    found = next((group for group in PROVIDERS[name] if all(map(_is_on, group))), None)
    return found[0] if found else _anthropic_profile() if name == "anthropic" else None


def _is_on(variable: str) -> bool:
    value = os.environ.get(variable, "")
    return value.lower() in ("true", "1") if variable in SWITCHES else bool(value)


def _anthropic_profile() -> str | None:
    """The file from which the SDK takes a profile that nobody has named (its lib/credentials/_chain.py, step 5)."""
    try:
        folder = Path.home() / ".config" / "anthropic"
        if (folder / "active_config").is_file() and (folder / "active_config").read_text().strip():
            return str(folder / "active_config")
        default = folder / "configs" / "default.json"
        return str(default) if default.is_file() else None
    except (OSError, RuntimeError, UnicodeDecodeError):  # no home, or not ours to read
        return None


def load_settings() -> Settings:
    """The settings of this process, and the addresses that providers' SDKs read. Raises SettingsError with one line a
    variable, which does not repeat what it holds.
    """
    lines = []
    for variable in sorted(name for name in PROVIDER_VARIABLES if name.endswith("_BASE_URL")):
        try:
            if url := os.environ.get(variable):
                require_http_url(url)
        except ValueError as error:
            lines.append(f"{variable}: {error}")
    in_files, wrong = _from_files({name.upper(): value for name, value in os.environ.items()})
    try:
        settings = Settings(**in_files)
    except ValidationError as error:
        lines.append(_lines(error, {field: _file_variable(field) for field in in_files}))
    if lines := [*wrong, *lines]:
        raise SettingsError("\n".join(lines))
    return settings


def _file_variable(field: str) -> str:
    return f"{PREFIX}{field.upper()}_FILE"


def _from_files(environment: Mapping[str, str]) -> tuple[dict[str, Any], list[str]]:
    """Field → what its file holds, and a line for each file that cannot be used. Neither a path nor a content is
    repeated: somebody may have put the secret itself where its path belongs.
    """
    found: dict[str, Any] = {}
    wrong = []
    for field in SECRET_FILES:
        variable = _file_variable(field)
        if not (path := environment.get(variable)):
            continue
        if environment.get(variable.removesuffix("_FILE")):
            wrong.append(f"{variable}: {variable.removesuffix('_FILE')} is set too; which of them counts? Give one")
            continue
        try:
            found[field] = _secret_in(path)
        except OSError as error:
            wrong.append(f"{variable}: the file cannot be read ({error.strerror})")
        except ValueError as error:
            wrong.append(f"{variable}: {error}")
    return found, wrong


def _secret_in(path: str) -> str:
    with open(path, "rb") as file:
        content = file.read(MAX_SECRET_FILE_BYTES + 1)
    if len(content) > MAX_SECRET_FILE_BYTES:
        raise ValueError("the file is too large for a secret")
    try:
        secret = content.decode().strip()
    except UnicodeDecodeError:
        raise ValueError("the file is not text in UTF-8") from None
    if not secret:
        raise ValueError("the file is empty")
    return ",".join(secret.splitlines())  # several keys, one a line; an address has one line


def unknown_variables(environment: Iterable[str]) -> Iterator[str]:
    """A line for each variable that looks like a setting and is none. What it holds is not repeated."""
    known = {f"{PREFIX}{field.upper()}" for field in Settings.model_fields} | OTHER_VARIABLES
    known |= {_file_variable(field) for field in SECRET_FILES}
    for name in sorted(environment):
        if name == COMPOSE_PORT:
            yield f"{name} is for compose.yaml alone: here the port is --port."
        elif name.upper().startswith(PREFIX) and name.upper() not in known | COMPOSE_VARIABLES:
            settings = [setting.removeprefix(PREFIX) for setting in known]
            near = get_close_matches(name.upper().removeprefix(PREFIX), settings, n=1)
            yield f"{name} is not a setting, and is ignored." + (f" Did you mean {PREFIX}{near[0]}?" if near else "")


def with_options(settings: Settings, **options: tuple[str, object]) -> Settings:
    """A checked copy with some settings replaced: field=(the option as it is typed, its value; None: not given).

    Raises SettingsError with one line an option.
    """
    given = {field: value for field, (_, value) in options.items() if value is not None}
    try:
        return Settings(**{**settings.model_dump(), **given})
    except ValidationError as error:
        raise SettingsError(_lines(error, {field: option for field, (option, _) in options.items()})) from None


def listening(host: str, port: int, settings: Settings) -> str:
    """What a server says when it accepts connections."""
    shown = f"[{host}]" if ":" in host else host or "0.0.0.0"
    return f"Listening on http://{shown}:{port} with {shown_redis_url(settings.redis_url)}"


def waiting_for_work(settings: Settings) -> str:
    return f"Waiting for work from {shown_redis_url(settings.redis_url)}"


def needs_a_key(settings: Settings, host: str) -> bool:
    """Whether a server may listen on this address only if Redis has a key."""
    return not settings.keys and host not in LOOPBACK


def refusal_to_listen(host: str, data_dir: str = "") -> str:
    """What a server says that may not listen on this address, since there is no key. `data_dir`: of `up`, where it is
    not the one that `lastevent keys` looks for.
    """
    there = f" --data-dir {quote(data_dir)}" if data_dir else ""
    return (
        f"Refusing to listen on {host} without keys: anyone who reaches it could read and start generations.\n"
        "Make a key, which is shown once:\n"
        f"  lastevent keys create{there}\n"
        "or set LASTEVENT_API_KEYS to one or more secrets, separated by commas, for example\n"
        "  export LASTEVENT_API_KEYS=$(openssl rand -hex 24)\n"
        "or listen on 127.0.0.1."
    )


def _lines(error: ValidationError, options: Mapping[str, str]) -> str:
    return "\n".join(_line(problem["loc"], problem["msg"], options) for problem in error.errors())


def _line(place: tuple[int | str, ...], message: str, options: Mapping[str, str]) -> str:
    message = message.removeprefix("Value error, ")
    if not place:
        return message
    field = str(place[0])
    return f"{options.get(field, f'{PREFIX}{field.upper()}')}: {message}"
