"""The models file (LASTEVENT_MODELS_FILE): more providers, aliases for chains, and prices of one's own. TOML:

[provider.vllm]                      # any OpenAI-compatible server
kind = "openai-chat"                 # or another built-in kind, at another address
base_url = "http://gpu1:8000/v1"
api_key_env = "VLLM_KEY"             # the variable that has the key; none: it needs none

[model.fast]                         # "model": "fast"
chain = ["anthropic/claude-haiku-4-5", "openai/gpt-5-mini", "vllm/qwen3"]

[model."vllm/qwen3".price]           # USD per million tokens
input = 0.1
output = 0.3
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterator, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, field_validator

from broker.settings import PROVIDERS, SettingsError
from broker.store.host import require_http_url
from worker.providers.prices import Price

Kind = Literal["anthropic", "openai", "openai-chat", "gemini"]
ProviderName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]
ModelName = Annotated[str, StringConstraints(pattern=r"^[^/\x00-\x1f\x7f]{1,64}/[^\x00-\x1f\x7f]{1,128}$")]
"""provider/name"""


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


class OwnProvider(_Table):
    """A provider at an address of its own. Under a built-in name it takes that one's place."""

    kind: Kind
    base_url: str
    api_key_env: str | None = None

    @field_validator("base_url")
    @classmethod
    def _is_http(cls, url: str) -> str:
        require_http_url(url)
        return url

    @property
    def api_key(self) -> str | None:
        return os.environ.get(self.api_key_env) if self.api_key_env else None


class OwnPrice(_Table):
    input: Annotated[Decimal, Field(ge=0)]
    output: Annotated[Decimal, Field(ge=0)]
    cache_read: Annotated[Decimal, Field(ge=0)] | None = None
    cache_write: Annotated[Decimal, Field(ge=0)] | None = None


class OwnModel(_Table):
    """An alias has a chain; a model by its own name has a price."""

    chain: Annotated[tuple[ModelName, ...], Field(min_length=1, max_length=8)] | None = None
    price: OwnPrice | None = None


class ModelsFile(_Table):
    provider: Mapping[ProviderName, OwnProvider] = Field(default_factory=dict)
    model: Mapping[str, OwnModel] = Field(default_factory=dict)

    @property
    def chains(self) -> dict[str, tuple[str, ...]]:
        return {name: model.chain for name, model in self.model.items() if model.chain}

    def price_of(self, model: str) -> Price | None:
        """`model`: provider/name."""
        own = self.model.get(model)
        return Price(**own.price.model_dump()) if own and own.price else None


def read_models_file(path: Path | None) -> ModelsFile:
    """Raises SettingsError: it cannot be read, is no TOML, or says what cannot be. No value is repeated."""
    if path is None:
        return ModelsFile()
    try:
        file = ModelsFile.model_validate(tomllib.loads(path.read_text()))
    except OSError as error:
        raise SettingsError(f"LASTEVENT_MODELS_FILE: {path} cannot be read ({error.strerror})") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"LASTEVENT_MODELS_FILE: {path} is no TOML: {error}") from None
    except ValidationError as error:
        raise SettingsError("\n".join(_line(problem["loc"], problem["msg"]) for problem in error.errors())) from None
    if wrong := list(_contradictions(file)):
        raise SettingsError("\n".join(f"LASTEVENT_MODELS_FILE: {line}" for line in wrong))
    return file


def _contradictions(file: ModelsFile) -> Iterator[str]:
    known = PROVIDERS.keys() | file.provider.keys()
    for name, model in file.model.items():
        if model.chain and "/" in name:
            yield f"model.{name}: an alias has no slash in its name"
        if model.price and "/" not in name:
            yield f"model.{name}.price: prices are a model's, by its name: provider/name"
        if not (model.chain or model.price):
            yield f"model.{name}: it has neither a chain nor a price"
        for provider in {one.partition("/")[0] for one in model.chain or ()} - known:
            yield f"model.{name}.chain: no provider {provider}; there are {', '.join(sorted(known))}"


def _line(place: tuple[int | str, ...], message: str) -> str:
    where = ".".join(str(part) for part in place)
    return f"LASTEVENT_MODELS_FILE: {where}: {message.removeprefix('Value error, ')}"
