"""A start that names a webhook: refused at once, in plain words, where nobody would be told; what its record shows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from broker.settings import Settings, SettingsError, load_settings
from tests.rig.deployment import Deployment
from tests.web.wire import Api, problem

SECRET = "whsec_" + 43 * "A" + "="
WAITING = {"state": "waiting", "attempts": 0, "last_status": None, "next_at": None}


def test_a_server_that_signs_nothing_refuses_webhooks_and_starts_what_names_none(api: Api) -> None:
    refused = api.post("/v1/streams", {"prompt": "Hi", "webhook": {"url": "https://a.example/"}})
    assert "LASTEVENT_WEBHOOK_SECRETS" in problem(refused, 422, "invalid_request")["detail"]
    started = api.post("/v1/streams", {"prompt": "Hi", "webhook": None})
    assert started.status_code == 201
    assert started.json()["webhook"] is None
    for wrong in ({}, {"url": ""}, {"url": 5}, {"url": "https://a.example/", "secret": "x"}, "https://a.example/", [1]):
        assert api.post("/v1/streams", {"prompt": "Hi", "webhook": wrong}).status_code == 422


def test_what_a_webhook_may_be_and_what_its_stream_shows_of_it(
    own_deployment: Callable[..., Deployment], open_api: Callable[..., Api]
) -> None:
    default = "https://default.example/hooks?token=t0ps3cret"
    settings = {"LASTEVENT_WEBHOOK_SECRETS": SECRET, "LASTEVENT_WEBHOOK_URL": default}
    api = open_api(own_deployment(servers=1, workers=0, **settings).url)
    for url in ("http://a.example/", "https://127.0.0.1/", "https://[::1]/", "https://u:p@a.example/", "https://a b/"):
        refused = api.post("/v1/streams", {"producer": "external", "webhook": {"url": url}})
        detail = problem(refused, 422, "invalid_request")["detail"]
        assert detail.startswith("webhook.url: ")
        assert url not in detail

    def start(**body: Any) -> dict[str, Any]:
        answer = api.post("/v1/streams", {"producer": "external", **body})
        assert answer.status_code == 201, answer.text
        record: dict[str, Any] = answer.json()
        return record

    assert start(webhook=None)["webhook"] is None
    named, by_default = start(webhook={"url": "https://a.example/"}), start()
    for started in (named, by_default):
        assert started["webhook"] == WAITING
        answer = api.get(f"/v1/streams/{started['id']}")
        assert answer.json()["webhook"] == WAITING
        assert "example" not in answer.text
    queued = api.post("/v1/streams", {"prompt": "Hi"}).json()
    api.post(f"/v1/streams/{queued['id']}/cancel")
    again = api.post(f"/v1/streams/{queued['id']}/regenerate")
    assert again.json()["webhook"] == WAITING
    listed = api.get("/v1/streams").json()["streams"]
    assert listed
    assert not any("webhook" in one for one in listed)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"WEBHOOK_SECRETS": "whsec_short"}, "LASTEVENT_WEBHOOK_SECRETS: each is whsec_"),
        ({"WEBHOOK_SECRETS": 32 * "A"}, "LASTEVENT_WEBHOOK_SECRETS: each is whsec_"),
        ({"WEBHOOK_SECRETS": f"a={SECRET},b="}, "LASTEVENT_WEBHOOK_SECRETS: each is whsec_"),
        ({"WEBHOOK_ALLOW": "https://x/"}, "LASTEVENT_WEBHOOK_ALLOW: each is a host"),
        ({"WEBHOOK_URL": "https://a.example/"}, "LASTEVENT_WEBHOOK_URL needs LASTEVENT_WEBHOOK_SECRETS"),
        ({"WEBHOOK_URL": "http://s3cret.example/", "WEBHOOK_SECRETS": SECRET}, "LASTEVENT_WEBHOOK_URL: https"),
    ],
)
def test_a_setting_that_cannot_be_used_is_named_and_not_repeated(
    settings: dict[str, str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in settings.items():
        monkeypatch.setenv(f"LASTEVENT_{name}", value)
    with pytest.raises(SettingsError) as refused:
        load_settings()
    assert said in str(refused.value)
    assert not any(part in str(refused.value) for part in ("s3cret", "short", "AAAA"))


def test_secrets_are_a_tenants_own_or_everybodys_and_may_be_several(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    other = "whsec_" + 32 * "B"
    monkeypatch.setenv("LASTEVENT_WEBHOOK_SECRETS", f"shop={SECRET},{other},shop={other}")
    settings = load_settings()
    assert settings.webhook_keys("shop") == [bytes(32), b"\x04\x10\x41" * 8]
    assert settings.webhook_keys("default") == [b"\x04\x10\x41" * 8]
    monkeypatch.delenv("LASTEVENT_WEBHOOK_SECRETS")
    (tmp_path / "secrets").write_text(f"shop={SECRET}\nshop={other}\n")
    monkeypatch.setenv("LASTEVENT_WEBHOOK_SECRETS_FILE", str(tmp_path / "secrets"))
    assert len(load_settings().webhook_keys("shop")) == 2
    assert load_settings().webhook_keys("default") == []
    assert Settings(**load_settings().model_dump()).webhook_keys("shop") == load_settings().webhook_keys("shop")
