"""The suite: every scenario, in order."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bench import report
from bench.archive import archive
from bench.catch_up import catch_up
from bench.first_token import first_token
from bench.load.agent import raise_descriptor_limit
from bench.memory import memory
from bench.parts import parts
from bench.relay import fanout, relay
from bench.scenario import Options, Scenario
from bench.storm import storm
from bench.table import Table
from bench.ten_thousand import ten_thousand
from bench.worker import worker

SCENARIOS: dict[str, Scenario] = {
    "relay": relay,
    "fanout": fanout,
    "ten_thousand": ten_thousand,
    "storm": storm,
    "catch_up": catch_up,
    "first_token": first_token,
    "memory": memory,
    "worker": worker,
    "parts": parts,
    "archive": archive,
}

AS_THEY_ARE = Options()


def run(names: Sequence[str], options: Options = AS_THEY_ARE, to: Path | None = None) -> list[Table]:
    """Run scenarios, print their tables as they come, and write a report `to` a file.

    A table's `failures` say what must not be.
    """
    raise_descriptor_limit()
    print(report.machine_line(), flush=True)
    tables = []
    for name in names:
        for table in SCENARIOS[name](options):
            print(table.as_text(), flush=True)
            tables.append(table)
    if to:
        report.write(to, tables)
    return tables
