"""python -m tests.protocol: larger bounds than the tests explore (some minutes, up to 2 GB)."""

import sys
import time

from tests.protocol.calls import CallSearch
from tests.protocol.search import Bounds, Search
from tests.protocol.test_model import BLIND, CALLS, CLEAN, GIVEN, NEEDED, NEEDED_BY_CALLS, PAID, THREE, TWO

LARGE = {
    "a viewer, a cancel, one of all goes away": Bounds(lost_replies=0),
    "lost replies": BLIND._replace(cancels=1, lost_replies=1),
    "three workers, two of them go away": BLIND._replace(workers=3, absences=2),
    "a viewer and releases": Bounds(cancels=0, lost_replies=0, releases=True),
    "a hub that hears late": Bounds(absences=0, late_hub=True),
    "two texts": BLIND._replace(texts=2, lost_replies=1),
    "two texts, a cancel": TWO._replace(cancels=1, lost_replies=1),
    "two texts, a cancel, endings": BLIND._replace(texts=2, cancels=1),
    "two texts, a viewer": TWO._replace(viewer=True, lost_replies=1),
    "two texts, releases": TWO._replace(releases=True, lost_replies=1),
    "two texts, clean restarts, a cancel": TWO._replace(clean_restarts=1, cancels=1),
    "two texts, two rollbacks": TWO._replace(rollbacks=2),
    "two texts, three workers, two of them go away": TWO._replace(workers=3, absences=2),
    "three texts, lost replies": TWO._replace(texts=3, lost_replies=1),
    "a clean restart, a rollback, one of all goes away": CLEAN._replace(absences=1),
    "a viewer and clean restarts": Bounds(rollbacks=0, clean_restarts=2, lost_replies=0),
    "usage, takeovers": PAID._replace(absences=1),
    "usage, two rollbacks": PAID._replace(counts=2, rollbacks=2),
    "usage, lost replies, releases": PAID._replace(lost_replies=1, releases=True),
    "two rollbacks": BLIND._replace(rollbacks=2),
    "a given id, two of all go away": GIVEN._replace(absences=2),
    "a given id, two rollbacks": GIVEN._replace(rollbacks=2),
    "a given id, three workers": THREE._replace(given=True),
    "calls, lost replies": CALLS._replace(lost_replies=1),
    "calls, three workers, a cancel": CALLS._replace(workers=3, cancels=1),
    "calls, releases, idempotent": CALLS._replace(releases=True, idempotent=True),
    "calls, two rollbacks": CALLS._replace(rollbacks=2),
}


def main() -> int:
    failed = 0
    for name, bounds in LARGE.items():
        began, search = time.monotonic(), (CallSearch if bounds.calls else Search)(bounds)
        trace = search.run()
        failed += trace is not None
        print(f"{name}: {search.states} states, {time.monotonic() - began:.0f} s: {trace or 'holds'}", flush=True)
    for rule, (bounds, _) in NEEDED.items():
        print(f"without {rule!r}: {Search(bounds, frozenset([rule])).run()}")
    for rule, (bounds, _) in NEEDED_BY_CALLS.items():
        print(f"without {rule!r}: {CallSearch(bounds, frozenset([rule])).run()}")
    return failed


if __name__ == "__main__":
    sys.exit(main())
