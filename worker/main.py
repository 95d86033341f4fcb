"""A worker process, put together: its provider, its worker, its signals, its end."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
from typing import TYPE_CHECKING

from broker import gauges
from broker.process.admin import answers_of, offer_answers
from broker.process.app_options import AppOptions
from broker.process.descriptors import RAISE_IT, raise_limit, room_of
from broker.process.parent import on_parents_end, tell_parent
from broker.settings import PROVIDERS, Settings, SettingsError, configured_by, variables_of
from worker.providers.choose import Providers
from worker.providers.models_file import read_models_file
from worker.standin.server import StandIn
from worker.worker import Worker

if TYPE_CHECKING:
    from worker.agents.app import App

logger = logging.getLogger(__name__)


async def work(
    settings: Settings, *, parent_pipe: bool = False, admin_fd: int | None = None, app: AppOptions | None = None
) -> bool:
    """Run a worker until SIGTERM or SIGINT. With `parent_pipe`, also until standard input ends: its parent is gone. The
    parent is told when this worker takes generations. `admin_fd`: where a supervisor asks for what else is asked at the
    admin port, which is then the supervisor's.

    False if it had to end since a part of it died. Raises SettingsError.
    """
    standin = StandIn() if settings.standin else None
    models = Providers(settings, standin)
    gauges.configure_models({settings.default_model, *models.configured()})
    for lack in models.lacks():
        logger.warning("%s", lack)
    room = _with_room(settings, descriptors_each=2 if standin else 1)
    worker = Worker(room, models, _app(app, settings) if app else None)
    loop = asyncio.get_running_loop()
    if standin:
        standin.on_death = lambda: loop.call_soon_threadsafe(worker.fail)
    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, worker.stop)
    if parent_pipe:
        on_parents_end(loop, worker.stop)
    answers = answers_of(worker.require_taking, loop)
    offer_answers(settings, answers, say=_say, admin_fd=admin_fd, has_parent=parent_pipe)
    telling = asyncio.create_task(_tell_when_taking(worker, to_parent=parent_pipe))
    try:
        await worker.run()
    finally:
        telling.cancel()
        if standin:
            standin.close()
    return not worker.has_failed


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _app(options: AppOptions, settings: Settings) -> App:
    from worker.agents.app import App  # a worker without an app loads nothing of it

    return App(options, blocked_s=settings.agent_blocked_s)


def require_a_provider(settings: Settings) -> None:
    """Nobody is answered with canned sentences, under a model's name, because a key was forgotten.

    Raises SettingsError.
    """
    if read_models_file(settings.models_file).provider or settings.standin or any(map(configured_by, PROVIDERS)):
        return
    variables = sorted({name for provider in PROVIDERS for name in variables_of(provider) if name.endswith("_KEY")})
    raise SettingsError(
        f"No model provider is set up: set {', '.join(variables)}, what else their SDKs read, or "
        "LASTEVENT_MODELS_FILE. LASTEVENT_STANDIN=1 lets the stand-in answer, which is not a model."
    )


def _with_room(settings: Settings, *, descriptors_each: int) -> Settings:
    """At most as many generations at a time as there are descriptors for: one more waits, and does not fail."""
    limit = raise_limit()
    concurrency = min(settings.concurrency, room_of(limit) // descriptors_each)
    if concurrency < settings.concurrency:
        logger.warning(
            "this worker runs %d generations at a time, not %d: it may have %d descriptors. %s",
            *(concurrency, settings.concurrency, limit, RAISE_IT),
        )
    return settings.model_copy(update={"concurrency": concurrency})


async def _tell_when_taking(worker: Worker, *, to_parent: bool) -> None:
    await worker.wait_until_taking()
    logger.info("this worker takes generations")
    if to_parent:
        tell_parent()
