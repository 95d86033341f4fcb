"""Whether a start may name this webhook: what a worker would never send is refused at once, in plain words."""

from __future__ import annotations

from broker.errors import InvalidRequest
from broker.settings import Settings
from broker.store.webhook_url import target_of


def require_webhook(settings: Settings, url: str, tenant: str) -> str:
    """The URL. Raises InvalidRequest, which does not repeat it. Its host is resolved when it is asked, not now."""
    if not settings.webhook_keys(tenant):
        raise InvalidRequest(
            "webhook: this server signs none for you, so none is sent. Set LASTEVENT_WEBHOOK_SECRETS, or leave it out."
        )
    try:
        target_of(url, settings.webhooks_may_reach)
    except ValueError as wrong:
        raise InvalidRequest(f"webhook.url: {wrong}.") from None
    return url
