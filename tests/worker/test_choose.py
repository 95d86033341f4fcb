"""Which provider's client a worker makes."""

from __future__ import annotations

from broker.settings import PROVIDERS
from worker.providers.choose import MAKERS


def test_every_provider_that_settings_name_can_be_made() -> None:
    assert MAKERS.keys() == PROVIDERS.keys()
