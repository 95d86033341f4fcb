"""Clients that others wrote lose and double nothing, wherever in a frame they are cut."""

import asyncio

import pytest

from tests.clients.cutter import cutting
from tests.clients.programs import Go, Language, Node, Outcome, Python
from tests.clients.trial import APP_HAD, Ended, Trial, Tried, produce, try_clients
from tests.rig.deployment import Deployment

EVERY_CLIENT = [(kind.name, client) for kind in (Node, Python, Go) for client in (*kind.recipes, *kind.others)]


@pytest.fixture(scope="module")
def ended(deployment: Deployment) -> Ended:
    return asyncio.run(produce(deployment, events=14))


@pytest.fixture(scope="module")
def tried(deployment: Deployment, ended: Ended, node: Language, python: Language, go: Language) -> dict[str, Tried]:
    return asyncio.run(try_clients(deployment, ended, (node, python, go)))


def of(tried: dict[str, Tried], client: str, name: str) -> dict[str, Tried]:
    return {case: one for case, one in tried.items() if case.startswith(f"{client}-{name}")}


@pytest.mark.npm
@pytest.mark.parametrize(("language", "client"), EVERY_CLIENT)
def test_a_client_that_is_cut_twice_shows_each_event_once_and_stops_at_the_end(
    tried: dict[str, Tried], language: str, client: str
) -> None:
    cases = of(tried, client, "cut")
    assert len(cases) > 10
    assert {case: one.outcome for case, one in cases.items() if any(one.outcome)} == {}
    assert [case for case, one in cases.items() if not one.shown.has_ended] == []
    assert all(one.requests > 1 for one in cases.values())


@pytest.mark.npm
@pytest.mark.parametrize(("language", "client"), EVERY_CLIENT)
def test_an_app_that_was_closed_goes_on_after_what_it_had_also_if_it_is_cut_at_once(
    tried: dict[str, Tried], language: str, client: str
) -> None:
    [one] = of(tried, client, "closed").values()
    assert one.expected[0].id == str(APP_HAD + 1)
    assert not any(one.outcome)
    assert one.requests == 3


@pytest.mark.npm
@pytest.mark.parametrize(("language", "client"), EVERY_CLIENT)
def test_an_app_that_had_everything_asks_once(tried: dict[str, Tried], language: str, client: str) -> None:
    [one] = of(tried, client, "had-all").values()
    assert one.shown.events == []
    assert one.shown.has_ended
    assert one.requests == 1


@pytest.mark.npm
async def test_fetch_event_source_alone_loses_an_event_only_if_it_is_cut_between_its_id_and_its_last_byte(
    deployment: Deployment, ended: Ended, node: Language
) -> None:
    frame = ended.frame("10")
    async with cutting(deployment.ports[0]) as cutter:
        trial = Trial(ended, cutter)
        for place in range(frame.start, frame.stop + 1):
            trial.add("fetch-event-source-alone", str(place - frame.start), [place])
        tried = await trial.run(node)
    between = f"fetch-event-source-alone-{len(frame) - 1}"
    assert {case: one.outcome for case, one in tried.items() if any(one.outcome)} == {
        between: Outcome(lost=["10"], doubled=[], torn=[])
    }
