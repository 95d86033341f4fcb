"""tokens: what a server's process pays to check one. CPU of one core, in this process: nothing else is asked.

First as one that it has not seen: signature and claims. Then as at a reconnect: known again by its text.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

from joserfc import jwt
from joserfc.jwk import ECKey, Key, OctKey, OKPKey, RSAKey

from bench.scenario import Options
from bench.table import Table, number
from broker.tenants.issuers import GivenKeys, Issuer, Issuers
from broker.tenants.scopes import READ
from broker.tenants.tokens import Tokens

TOKENS, TOKENS_SHORT = 5_000, 100
ROUNDS = 5
KEYS: dict[str, Callable[[], Key]] = {
    "HS256": lambda: OctKey.generate_key(256),
    "Ed25519": lambda: OKPKey.generate_key("Ed25519"),
    "ES256": lambda: ECKey.generate_key("P-256"),
    "RS256": lambda: RSAKey.generate_key(2048),
}


def tokens(options: Options) -> list[Table]:
    rounds = 1 if options.short else options.rounds or ROUNDS
    count = TOKENS_SHORT if options.short else TOKENS
    rows = []
    for algorithm, make in KEYS.items():
        key = make()
        texts = [_token(key, algorithm, n) for n in range(count)]
        first_us, again_us = zip(*[_measure(key, algorithm, texts) for _ in range(rounds)], strict=True)
        rows.append([algorithm, number(median(first_us)), number(1e6 / median(first_us)), number(median(again_us))])
    notes = [f"Medians of {rounds} rounds of {count:,} tokens of {len(texts[0])} characters and less."]
    columns = ("algorithm", "µs the first time", "a second a core", "µs again")
    return [Table("tokens: checking one", columns, rows, notes)]


def _token(key: Key, algorithm: str, n: int) -> str:
    now = int(time.time())
    claims = {"iss": "https://login.example.com", "aud": "lastevent", "iat": now, "exp": now + 3600, "sub": f"user-{n}"}
    claims |= {"jti": f"{n:016x}", "scope": READ, "streams": [f"{n:032x}"]}
    return jwt.encode({"alg": algorithm, "kid": "k1"}, claims, key, algorithms=[algorithm])


def _measure(key: Key, algorithm: str, texts: list[str]) -> tuple[float, float]:
    """µs of CPU a token: the first time, and again."""
    issuer = Issuer(
        name="bench",
        iss="https://login.example.com",
        algorithms=frozenset({algorithm}),
        keys=GivenKeys(key),
        tenants=frozenset({"acme"}),
        is_fixed=True,
        audience="lastevent",
        max_ttl_s=86_400,
        scopes=frozenset({READ}),
        leeway_s=30,
    )
    verifier = Tokens(lambda: [b"never asked for"], Issuers([issuer]), audience="lastevent", max_ttl_s=86_400)
    return _cpu_us(verifier, texts), _cpu_us(verifier, texts)


def _cpu_us(verifier: Tokens, texts: list[str]) -> float:
    began = time.thread_time()
    for text in texts:
        verifier.verified(text)
    return (time.thread_time() - began) * 1e6 / len(texts)
