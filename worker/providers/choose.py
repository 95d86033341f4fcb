"""The registry: each provider by the name that a model begins with, and how its client is made when it is needed.

To add one: its adapter in a file of its own here, a line in `ADAPTERS`, and its variables in broker/settings.py.

SDKs take half a second to two seconds to import. The default model's is imported before a worker takes work; the others
that are set up follow, in a thread; one that is not, when somebody asks for it (it is then the stand-in's, or fails).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from importlib import import_module
from types import ModuleType
from typing import Any

from broker.log.models import Announced
from broker.process.imports import imports_outside_gc
from broker.settings import PROVIDERS, Settings, SettingsError, configured_by, variables_of
from worker.providers import prices
from worker.providers.bounds import Bounds
from worker.providers.chain import Target
from worker.providers.failures import ProviderFailure, invalid_input, no_key
from worker.providers.models_file import OwnProvider, read_models_file
from worker.providers.provider import Provider, Said
from worker.standin.server import StandIn

logger = logging.getLogger(__name__)

ADAPTERS = {
    "anthropic": ("anthropic", "AnthropicProvider"),
    "openai": ("openai", "OpenAIProvider"),
    "openai-chat": ("openai_chat", "OpenAIChatProvider"),
    "gemini": ("gemini", "GeminiProvider"),
}
"""Kind → its file here, and its class."""

STANDIN_PATHS = {"anthropic": "", "openai": "/v1", "openai-chat": "/v1", "gemini": ""}
"""Where in the stand-in each kind's base URL ends."""

STANDIN = "stand-in"


class Providers:
    """What this worker can reach. `standin`: answers in the place of built-in providers that are not set up.

    Raises SettingsError.
    """

    def __init__(self, settings: Settings, standin: StandIn | None) -> None:
        self._settings = settings
        self._standin = standin
        self._file = read_models_file(settings.models_file)
        self._made: dict[str, Provider] = {}
        self._making: dict[str, asyncio.Task[Provider]] = {}
        self._prices_are_there: asyncio.Task[None] | None = None
        self._updating: Any = None
        try:
            self._names(settings.default_model)
        except ProviderFailure as unknown:
            raise SettingsError(f"LASTEVENT_DEFAULT_MODEL: {unknown.message}") from None

    def lacks(self) -> Iterator[str]:
        """What an operator has probably forgotten, a line each."""
        default = self._default_provider()
        if self._standin is None and not self._is_set_up(default):
            yield f"LASTEVENT_DEFAULT_MODEL is one of {default}, which is not set up here: starts without a model fail"
        for name, own in self._file.provider.items():
            if own.api_key_env and not own.api_key:
                yield f"LASTEVENT_MODELS_FILE: provider.{name}.api_key_env: {own.api_key_env} is not set"

    async def chain(self, model: str | list[str]) -> list[Target]:
        """The models that a request is sent to, one after the other. Raises ProviderFailure: there is no such one."""
        if self._prices_are_there is not None:
            await asyncio.shield(self._prices_are_there)
        return [await self._target(name) for name in self._names(model)]

    async def warm_up(self) -> None:
        """The default model's provider, before anything is claimed: another worker may be warm."""
        await self.chain(self._settings.default_model)

    async def warm_prices(self) -> None:
        """From now on a name without its provider waits for them."""
        self._prices_are_there = asyncio.create_task(asyncio.to_thread(_warm_up_prices))
        await asyncio.shield(self._prices_are_there)

    async def warm_the_rest(self) -> None:
        """What else is set up here, while this worker works."""
        if self._settings.prices_update and self._updating is None:
            self._updating = await asyncio.to_thread(prices.keep_updated)
        for name in self._set_up():
            await self._provider(name)

    def announced(self) -> tuple[dict[str, Announced], dict[str, tuple[str, ...]]]:
        """The providers that answer here, and the aliases: for GET /v1/models."""
        names = self._set_up() if self._standin is None else [*PROVIDERS, *self._file.provider]
        providers = {name: Announced(self._is_standin(name), self._known_models(name)) for name in dict.fromkeys(names)}
        return providers, self._file.chains

    def configured(self) -> set[str]:
        """The names that the models file has: aliases, their models, and those with a price."""
        return {*self._file.model, *(name for chain in self._file.chains.values() for name in chain)}

    async def check_all(self) -> AsyncIterator[tuple[str, bool, str]]:
        """(provider, whether it takes the key, what is to be said of it) of each that is set up."""
        for name in self._set_up():
            try:
                await (await self._provider(name)).check()
            except ProviderFailure as failure:
                words = f" It said: {failure.said}" if failure.said else ""
                yield name, False, f"{failure.message}{words}"
            else:
                yield name, True, "it takes the key"

    async def aclose(self) -> None:
        for task in list(self._making.values()):
            task.cancel()
        for provider in self._made.values():
            await provider.aclose()
        if self._updating is not None:
            self._updating.stop()

    # -- names -------------------------------------------------------------------------------------------

    def _names(self, model: str | list[str]) -> list[str]:
        """provider/name of each, without an alias, each once."""
        asked = [model] if isinstance(model, str) else model
        chains = self._file.chains
        return list(dict.fromkeys(self._whole(one) for name in asked for one in chains.get(name, (name,))))

    def _whole(self, name: str) -> str:
        """A bare name belongs to the provider that it is known of, if that is set up, or else to the default one."""
        provider, slash, _ = name.partition("/")
        if not slash:
            known = prices.provider_of(name)
            provider = known if known and self._is_set_up(known) else self._default_provider()
            return f"{provider}/{name}"
        if provider not in PROVIDERS and provider not in self._file.provider:
            raise invalid_input(f"model: no worker here knows the provider that {name[:80]!r} begins with")
        return name

    def _default_provider(self) -> str:
        first = self._file.chains.get(self._settings.default_model, (self._settings.default_model,))[0]
        provider, slash, _ = first.partition("/")
        return provider if slash else "anthropic"

    def _is_set_up(self, name: str) -> bool:
        return name in self._file.provider or configured_by(name) is not None

    def _set_up(self) -> list[str]:
        return [name for name in dict.fromkeys([*PROVIDERS, *self._file.provider]) if self._is_set_up(name)]

    def _is_standin(self, name: str) -> bool:
        return self._standin is not None and not self._is_set_up(name)

    # -- clients -----------------------------------------------------------------------------------------

    async def _target(self, name: str) -> Target:
        provider, _, model = name.partition("/")
        own = self._file.provider.get(provider)
        is_standin = self._is_standin(provider)
        return Target(
            name,
            await self._provider(provider),
            model,
            answers_as=STANDIN if is_standin else provider,
            form=own.kind if own else provider,
            priced_as="" if own or is_standin else provider,
            base_url=own.base_url if own else None,
            price=None if is_standin else self._file.price_of(name),
        )

    async def _provider(self, name: str) -> Provider:
        if name in self._made:
            return self._made[name]
        if name not in self._making:
            self._making[name] = asyncio.create_task(self._make(name))
            self._making[name].add_done_callback(lambda _: self._making.pop(name))
        return await asyncio.shield(self._making[name])

    async def _make(self, name: str) -> Provider:
        own = self._file.provider.get(name)
        if own is None and not (self._standin or configured_by(name)):
            provider: Provider = NotSetUp(name)
        else:
            module, adapter = ADAPTERS[own.kind if own else name]
            # In a thread: the loop of every generation would stand still meanwhile.
            make = getattr(await asyncio.to_thread(_imported, f"worker.providers.{module}"), adapter)
            provider = make(name=name, **self._options(name, own))
            await provider.warm_up()
        self._made[name] = provider
        return provider

    def _options(self, name: str, own: OwnProvider | None) -> dict[str, Any]:
        settings = self._settings
        options: dict[str, Any] = {
            "silence_s": settings.provider_silence_s,
            "idle_s": settings.provider_idle_s,
            "bounds": Bounds(settings.provider_line_bytes, settings.provider_bytes),
        }
        if own:
            chat = {"ends_by_done": True} if own.ends_by_done else {}
            return options | chat | {"base_url": own.base_url, "api_key": own.api_key}
        if self._standin and configured_by(name) is None:
            return options | {"base_url": self._standin.base_url + STANDIN_PATHS[name], "api_key": STANDIN}
        return options

    def _known_models(self, name: str) -> list[str]:
        own = self._file.provider.get(name)
        return prices.known_models(name, base_url=own.base_url) if own else prices.known_models(name)


def _imported(module: str) -> ModuleType:
    with imports_outside_gc():
        return import_module(module)


def _warm_up_prices() -> None:
    with imports_outside_gc():  # or the collector walks a table of 2,000 models each time
        prices.warm_up()


class NotSetUp:
    """A provider without credentials here: each attempt fails, and a chain goes on to its next model."""

    def __init__(self, name: str) -> None:
        self.name = name

    async def stream(self, _model: str, _request: dict[str, Any]) -> AsyncGenerator[Said, None]:
        await self.check()
        yield NotImplemented  # never reached; it makes this a generator

    async def warm_up(self) -> None: ...

    async def check(self) -> None:
        raise no_key(next(name for name in variables_of(self.name) if name.endswith("_KEY")))

    async def aclose(self) -> None: ...
