"""The suite: every scenario, in order, and which of them can measure a commit beside the work tree."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bench import report
from bench.against import pair
from bench.archive import archive
from bench.catch_up import catch_up
from bench.dialects import dialects
from bench.first_token import first_token, first_token_paired
from bench.load.agent import raise_descriptor_limit
from bench.memory import memory, memory_paired
from bench.parts import parts
from bench.presence import presence
from bench.relay import fanout, fanout_paired, relay, relay_paired
from bench.scenario import Options, Pairable, Scenario
from bench.sockets import sockets
from bench.start import start, start_paired
from bench.storm import storm
from bench.table import Table
from bench.ten_thousand import ten_thousand
from bench.tenants import tenants
from bench.tokens import tokens
from bench.tree import beside
from bench.whole_way import whole_way, whole_way_paired
from bench.worker import worker, worker_paired

SCENARIOS: dict[str, Scenario] = {
    "relay": relay,
    "fanout": fanout,
    "ten_thousand": ten_thousand,
    "storm": storm,
    "catch_up": catch_up,
    "first_token": first_token,
    "start": start,
    "memory": memory,
    "sockets": sockets,
    "dialects": dialects,
    "worker": worker,
    "whole_way": whole_way,
    "parts": parts,
    "presence": presence,
    "tokens": tokens,
    "tenants": tenants,
    "archive": archive,
}

PAIRED: dict[str, Pairable] = {
    "relay": relay_paired,
    "fanout": fanout_paired,
    "first_token": first_token_paired,
    "start": start_paired,
    "memory": memory_paired,
    "worker": worker_paired,
    "whole_way": whole_way_paired,
}
"""The others call the product's modules in their own process, or measure in another order."""

LOADED = {"worker", "whole_way"}
"""Whose loads can be chosen."""

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


def run_against(revision: str, names: Sequence[str], options: Options = AS_THEY_ARE) -> list[Table]:
    """Measure a commit and the work tree in turn, and print a table for each thing measured, as they come.

    `names`: of PAIRED. Raises CannotPair before anything is measured.
    """
    raise_descriptor_limit()
    tables = []
    with beside(revision) as sides:
        print("\n".join([report.machine_line(), *sides.notes]), flush=True)
        for name in names:
            for pairing in PAIRED[name](options):
                table = pair(pairing, sides, options)
                print(table.as_text(), flush=True)
                tables.append(table)
    return tables
