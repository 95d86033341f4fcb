"""python -m worker: what `lastevent work` and `lastevent up` start."""

from __future__ import annotations

from broker.process.first_process import heed_signals
from broker.process.imports import imports_outside_gc

heed_signals()

with imports_outside_gc():
    import argparse
    import os
    import sys

    import uvloop

    from broker.archive.signing import BadKey
    from broker.process.app_options import add_app_options, given_app
    from broker.process.logs import set_up_logs
    from broker.settings import (
        NO_ARCHIVE,
        SettingsError,
        load_settings,
        unknown_variables,
        waiting_for_work,
        with_options,
    )
    from broker.traces import end_traces, set_up_traces
    from worker.main import require_a_provider, work


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m worker", description="Run LLM generations into the log.")
    parser.add_argument("--concurrency", type=int, help="generations at a time (LASTEVENT_CONCURRENCY)")
    add_app_options(parser)
    parser.add_argument("--parent-pipe", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--admin-fd", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    try:
        app = given_app(options)
        settings = with_options(load_settings(), concurrency=("--concurrency", options.concurrency))
        require_a_provider(settings)
    except SettingsError as error:
        print(error, file=sys.stderr)
        return 2
    set_up_logs("worker", settings.log_level, libraries=settings.log_libraries)
    set_up_traces("worker")
    if not settings.archive_url:
        print(NO_ARCHIVE, file=sys.stderr)
    if not options.parent_pipe:
        for line in unknown_variables(os.environ):
            print(line, file=sys.stderr)
        print(waiting_for_work(settings), file=sys.stderr, flush=True)
    try:
        working = work(settings, parent_pipe=options.parent_pipe, admin_fd=options.admin_fd, app=app)
        return 0 if uvloop.run(working) else 1
    except (BadKey, SettingsError) as error:
        print(error, file=sys.stderr)
        return 2
    finally:
        end_traces()


if __name__ == "__main__":
    sys.exit(main())
