"""`make clients`: all clients, also those that compile for minutes; and fetch-event-source, cut at random for long.

Needs Node, Go, Rust, Java and Maven. It prints the tables of docs/CLIENTS.md. `proxies` (make clients ARGS=proxies) are
the configurations of docs/ops, which need HAProxy and Caddy; both take longer to install than CI has.
"""

import asyncio
import random
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.clients.cutter import cutting
from tests.clients.programs import Go, Jvm, Language, Node, Python, Rust, outcome
from tests.clients.trial import Trial, produce, try_clients
from tests.conftest import deployment_in
from tests.rig.deployment import Deployment

GENERATIONS = 200
EVENTS = 60
BETWEEN = re.compile(rb"\nid: (\d+)\n\Z")
"""All of an event but its blank line."""
LANGUAGES = {"node": Node("npm"), "python": Python(), "go": Go("go"), "jvm": Jvm(), "rust": Rust()}


def main(names: list[str]) -> int:
    if names == ["proxies"]:
        return _proxies()
    bad = _clients(names)
    return bad or (0 if names else _proxies())


def _proxies() -> int:
    tests = Path(__file__).with_name("other_proxies.py")
    return subprocess.run([sys.executable, "-m", "pytest", "-q", str(tests)]).returncode


def _clients(names: list[str]) -> int:
    with (
        tempfile.TemporaryDirectory(prefix="le-clients-") as there,
        deployment_in(Path(there), servers=1) as deployment,
    ):
        languages = [LANGUAGES[name] for name in names or LANGUAGES]
        for language in languages:
            language.folder = Path(there) / language.name
            language.folder.mkdir()
            print(f"making {language.name} ready", flush=True)
            language.make_ready(language.folder)
        bad = asyncio.run(_everyone(deployment, languages))
        if not names or "node" in names:
            bad += asyncio.run(_fetch_event_source(deployment, languages[0]))
            asyncio.run(_after_the_end(deployment, languages[0]))
    return 1 if bad else 0


async def _everyone(deployment: Deployment, languages: list[Language]) -> int:
    tried = await try_clients(deployment, await produce(deployment, events=14), languages)
    bad = 0
    print("\n| client | cases | connections | lost | doubled | torn | stopped |\n|---|---|---|---|---|---|---|")
    for client in (client for language in languages for client in language.clients):
        mine = [one for one in tried.values() if one.client == client]
        lost, doubled, torn = (sum(len(one.outcome[n]) for one in mine) for n in range(3))
        stopped = sum(one.shown.has_ended for one in mine)
        connections = sum(one.requests for one in mine)
        print(f"| {client} | {len(mine)} | {connections} | {lost} | {doubled} | {torn} | {stopped} |")
        bad += lost + doubled + torn + len(mine) - stopped
    return bad


async def _fetch_event_source(deployment: Deployment, node: Language) -> int:
    """As it comes, without the recipe's `fetch:`."""
    numbers = random.Random("fetch-event-source")
    streams = [await produce(deployment, EVENTS) for _ in range(GENERATIONS)]
    unexpected = in_between = 0
    async with cutting(deployment.ports[0]) as cutter:
        trials = []
        for n, stream in enumerate(streams):
            trial = Trial(stream, cutter)
            # Not in the last line of the terminal event: who is cut there comes back after a minute.
            places = sorted(numbers.randrange(stream.body.index(b"retry:", 20)) for _ in range(2))
            trial.add("fetch-event-source-alone", f"{n}", [places[0], places[1] - places[0]])
            trials.append(trial)
        # One process for all of them.
        cases = [case for trial in trials for case, _ in trial.cases]
        shown = await node.run(cases, 120)
    cuts = 0
    for case, stream in zip(cases, streams, strict=True):
        found = outcome(shown[case.case], stream.events)
        between = {at[1].decode() for seen in cutter.seen[case.case] if (at := BETWEEN.search(seen))}
        cuts += len(cutter.seen[case.case])
        in_between += len(between & set(found.lost))
        unexpected += len(set(found.lost) - between) + len(found.doubled) + len(found.torn)
    print(
        f"\nfetch-event-source alone: {GENERATIONS} generations of {EVENTS} events, {cuts} cuts at random bytes: "
        f"{in_between} lost to a cut between an id and the blank line, {unexpected} lost, doubled or torn otherwise"
    )
    return unexpected


async def _after_the_end(deployment: Deployment, node: Language) -> None:
    """How often clients ask that nobody closes: in the two minutes after the end; and if they had it from the first."""
    stream = await produce(deployment, events=14)
    names = ("eventSource", "fetchEvent", "reactNative", "plus", "client", "launchDarkly")
    async with cutting(deployment.ports[0]) as cutter:
        trial = Trial(stream, cutter)
        for name in names:
            trial.add(f"unclosed:{name}", "followed", [])
            trial.add(f"unclosed:{name}", "had-all", [], has=len(stream.events))
        await node.run([case for case, _ in trial.cases], 120)
        print(
            "\n| not closed by its app | asked again after the end, in 2 minutes | if it had the end from the first |"
        )
        print("|---|---|---|")
        for name in names:
            followed, had_all = (len(cutter.asked[f"unclosed:{name}-{how}"]) - 1 for how in ("followed", "had-all"))
            print(f"| {name} | {followed} | {had_all} |")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
