"""Who may read /metrics where others than this machine reach the admin port: who has an API key with metrics:read."""

from __future__ import annotations

from broker.settings import Settings
from broker.tenants.keyring import Keyring, given_key
from broker.tenants.scopes import EVERYTHING, METRICS, opens


class Scrapers:
    def __init__(self, settings: Settings) -> None:
        self._given = [given_key(secret, EVERYTHING) for secret in settings.keys]

    def have(self, credential: str) -> bool:
        key = Keyring(self._given).find(credential)
        return key is not None and opens(key.scopes, METRICS)
