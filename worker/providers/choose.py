"""The registry: each provider by the name that a model begins with, and how its client is made.

To add one: its adapter in a file of its own here, a line in `MAKERS`, and its variables in broker/settings.py.
"""

from __future__ import annotations

from collections.abc import Callable

from broker.settings import Settings, provider_variable
from worker.providers.anthropic import AnthropicProvider
from worker.providers.bounds import Bounds
from worker.providers.provider import Provider
from worker.standin.server import StandIn


def make_provider(settings: Settings) -> tuple[Provider, StandIn | None]:
    """The client of the default model's provider; where no variable sets it up, of the stand-in in its place."""
    name = settings.default_model.partition("/")[0]
    standin = None if provider_variable(name) else StandIn()
    return MAKERS[name](settings, standin), standin


def _anthropic(settings: Settings, standin: StandIn | None) -> Provider:
    return AnthropicProvider(
        api_key="stand-in" if standin else None,
        base_url=standin.base_url if standin else None,
        silence_s=settings.provider_silence_s,
        bounds=Bounds(settings.provider_line_bytes, settings.provider_bytes),
    )


MAKERS: dict[str, Callable[[Settings, StandIn | None], Provider]] = {"anthropic": _anthropic}
