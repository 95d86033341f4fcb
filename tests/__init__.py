"""The suite's shape.

- A room's tests are in the folder of its name. fundamentals/ is the tutorial; protocol/ explores a model of the log;
  faults/ breaks real deployments; viewers/, browser/, console/ and compose/ look from outside; rig/ is shared.
- Shared by all tests of a pytest process, and started by the first that asks: `deployment` (leave it as it was),
  Valkey, PostgreSQL, Chromium. `own_deployment` is for tests that break parts.
- A pytest process costs some 8 s of CPU before its first test, and 6 s more where there are no .pyc files yet; a
  command, server or worker up to a second for its imports, which rig/zygote.py saves: only tests about the command's
  own start do without it.
- A test that starts processes has the mark `processes`, mostly by itself (rig/starts.py); the others are `make quick`.
- Searches are short in `make test` and long in `make long` (rig/long.py). A short one still says what its name says: of
  fewer cases, or of each in turn. Larger bounds of the protocol are explored by `python -m tests.protocol`.
- What one file needs and takes seconds to import is imported by its tests: every test process collects every file.
- A start of `lastevent up` costs 5 s of CPU: facts about the same start share it (command/test_up.py `twice`).
- `pytest --setup-plan FILE` shows how often a shared fixture is set up: for a list of pairs of which one is its
  parameter, once for each pair (archive/test_audit.py).
- What a change costs: `time make test ARGS=tests/<folder>` before and after it; its user and sys count, not its wall.
- Nothing stands on the usual order of two things, or on how soon something is done: `make hiccups` shows what does.
"""
