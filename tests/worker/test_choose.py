"""Which models a worker reaches: by the environment, by the models file, by the stand-in in a provider's place."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from broker.settings import PROVIDERS, Settings, SettingsError
from worker.main import require_a_provider
from worker.providers.choose import ADAPTERS, STANDIN_PATHS, Providers
from worker.providers.failures import ProviderFailure
from worker.providers.provider import Finish
from worker.standin.server import StandIn

FILE = """
[provider.vllm]
kind = "anthropic"
base_url = "http://127.0.0.1:9/v1"
api_key_env = "VLLM_KEY"

[model.fast]
chain = ["anthropic/claude-haiku-4-5", "vllm/qwen/qwen3"]

[model."vllm/qwen/qwen3".price]
input = 0.1
output = 0.3
"""


@pytest.fixture(scope="module")
def standin() -> Iterator[StandIn]:
    standin = StandIn()
    yield standin
    standin.close()


@pytest.fixture(autouse=True)
def _no_keys(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.startswith(("ANTHROPIC_", "OPENAI_", "GEMINI_", "GOOGLE_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.fixture
async def models(tmp_path: Path, standin: StandIn) -> AsyncIterator[Callable[..., Providers]]:
    """`models(file, **settings)`: without a key, and with the stand-in unless `standin=None`."""
    made = []

    def models(file: str = "", *, standin: StandIn | None = standin, **settings: Any) -> Providers:
        path = tmp_path / "models.toml"
        path.write_text(file)
        made.append(Providers(Settings(models_file=path, **settings), standin))
        return made[-1]

    yield models
    for one in made:
        await one.aclose()


def test_every_provider_that_settings_name_has_an_adapter() -> None:
    assert ADAPTERS.keys() == PROVIDERS.keys() == STANDIN_PATHS.keys()


async def test_an_alias_is_its_chain_and_each_model_stands_in_it_once(models: Any) -> None:
    targets = await models(FILE).chain(["fast", "anthropic/claude-haiku-4-5"])
    assert [target.name for target in targets] == ["anthropic/claude-haiku-4-5", "vllm/qwen/qwen3"]
    assert [target.model for target in targets] == ["claude-haiku-4-5", "qwen/qwen3"]


async def test_the_stand_in_never_answers_under_a_providers_name(models: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    priced = '[model."anthropic/claude-haiku-4-5".price]\ninput = 1\noutput = 2'
    [target] = await models(priced).chain("anthropic/claude-haiku-4-5")
    assert target.answers_as == "stand-in"
    assert (target.priced_as, target.price) == ("", None), "its words cost nothing"
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-secret")
    [target] = await models().chain("anthropic/claude-haiku-4-5")
    assert (target.answers_as, target.priced_as) == ("anthropic", "anthropic")


async def test_an_operators_own_price_goes_with_its_model(models: Any) -> None:
    [target] = await models(FILE).chain("vllm/qwen/qwen3")
    assert (target.price.input, target.price.output) == (Decimal("0.1"), Decimal("0.3"))
    assert (target.answers_as, target.form) == ("vllm", "anthropic")


async def test_a_provider_without_a_key_fails_as_unauthorized_and_names_the_variable(models: Any) -> None:
    [target] = await models(standin=None).chain("openai/gpt-5")
    with pytest.raises(ProviderFailure, match="OPENAI_API_KEY") as caught:
        async with aclosing(target.client.stream(target.model, {"messages": []})) as answer:
            await anext(answer)
    assert (caught.value.code, caught.value.moves_on) == ("provider_unauthorized", True)


async def test_a_provider_that_no_worker_knows_is_named(models: Any) -> None:
    with pytest.raises(ProviderFailure, match="'nobody/model'") as caught:
        await models().chain("nobody/model")
    assert caught.value.code == "invalid_input"


@pytest.mark.parametrize(
    ("variable", "bare", "whole"),
    [
        ("ANTHROPIC_API_KEY", "claude-haiku-4-5", "anthropic/claude-haiku-4-5"),
        (
            "ANTHROPIC_API_KEY",
            "gpt-5-mini",
            "anthropic/gpt-5-mini",
        ),  # openai is not set up: the default provider says no
        ("ANTHROPIC_API_KEY", "somebodys-own", "anthropic/somebodys-own"),
    ],
)
async def test_a_bare_name_belongs_to_the_provider_that_is_known_for_it_or_else_to_the_default_one(
    models: Any, monkeypatch: pytest.MonkeyPatch, variable: str, bare: str, whole: str
) -> None:
    monkeypatch.setenv(variable, "sk-secret")
    [target] = await models(standin=None).chain(bare)
    assert target.name == whole


@pytest.mark.parametrize(
    ("file", "complaint"),
    [
        ("[provider", "no TOML"),
        ('[provider.x]\nkind = "other"\nbase_url = "http://x"', "provider.x.kind"),
        ('[provider.x]\nkind = "openai"\nbase_url = "ftp://x"', "provider.x.base_url"),
        ('[provider.x]\nkind = "openai"\nbase_url = "http://x"\nends_by_done = true', "ends_by_done"),
        ('[provider.X]\nkind = "openai"\nbase_url = "http://x"', "provider.X"),
        ('[model.a]\nchain = ["nobody/x"]', "no provider nobody"),
        ("[model.a]\nchain = []", "model.a.chain"),
        ("[model.a]", "neither a chain nor a price"),
        ('[model."a/b"]\nchain = ["openai/x"]', "has no slash"),
        ("[model.a.price]\ninput = 1\noutput = 2", "provider/name"),
        ('[model."a/b".price]\ninput = -1\noutput = 2', "model.a/b.price.input"),
        ("speed = 1", "speed"),
    ],
)
async def test_a_models_file_that_cannot_be_is_refused_with_the_place(models: Any, file: str, complaint: str) -> None:
    with pytest.raises(SettingsError, match="LASTEVENT_MODELS_FILE") as caught:
        models(file)
    assert complaint in str(caught.value)


def test_a_models_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="cannot be read"):
        Providers(Settings(models_file=tmp_path / "none.toml"), None)


async def test_a_default_model_of_nobodys_is_refused_at_the_start(models: Any) -> None:
    with pytest.raises(SettingsError, match="LASTEVENT_DEFAULT_MODEL"):
        models(FILE, default_model="nobody/model")
    models(FILE, default_model="vllm/model")


def test_a_worker_without_any_provider_does_not_start() -> None:
    with pytest.raises(SettingsError, match="No model provider is set up") as caught:
        require_a_provider(Settings())
    assert "LASTEVENT_STANDIN=1" in str(caught.value)


async def test_what_is_announced_is_what_answers_here(models: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    providers, aliases = models(FILE).announced()
    assert {name: one.is_standin for name, one in providers.items()} == {
        **dict.fromkeys(PROVIDERS, True),
        "vllm": False,
    }
    assert aliases == {"fast": ("anthropic/claude-haiku-4-5", "vllm/qwen/qwen3")}
    assert "claude-haiku-4-5" in providers["anthropic"].models
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-secret")
    providers, _ = models(standin=None).announced()
    assert providers.keys() == {"anthropic"}


async def test_each_provider_answers_over_its_own_sdk_by_the_stand_in(models: Any) -> None:
    request = {"messages": [{"role": "user", "content": "[[tokens=3 rate=0 ttft_ms=0]]"}], "max_tokens": 100}
    for target in await models().chain([f"{name}/some-model" for name in PROVIDERS]):
        said = [said async for said in target.client.stream(target.model, request)]
        assert [kind for kind, _ in [one for one in said if type(one) is tuple] if kind == "text_delta"]
        assert isinstance(said[-1], Finish)


@pytest.mark.processes
def test_a_worker_imports_no_sdk_before_it_is_needed() -> None:
    source = "import sys, worker.worker, worker.main; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=True)
    imported = set(done.stdout.split())
    assert not imported & {"anthropic", "openai", "google.genai", "genai_prices", "jsonschema_rs"}
