"""The broker: everything but the worker, which is a package beside it. Its rooms, in reading order:

log/        START HERE: a stream's events in Redis, and every step that changes or reads them
live/       from the log to the viewers, without a web framework
dialects/   from events to bytes
service/    what a caller can do, without HTTP
web/        HTTP: routes, viewers, problems, the server process
archive/    finished streams in a database, sealed
tenants/    who calls, on whose behalf, and how much each may have
store/      how to reach Redis, and the stores' addresses
process/    what our processes share, and what `lastevent up` starts
command/    the command `lastevent`
console/    the web UI at `/`, made of the public API

errors.py    everything that can go wrong, as a tree
settings.py  the environment, frozen
gauges.py    everything that is measured, by name
traces.py    every span of a trace, by name
auth.py      what each caller may do, in one grant
__main__.py  `python -m broker` is the command

Imports go one way: command → web → (service, live) → (archive, dialects) → log → store → errors; worker stands on
log, store, archive, process and settings.
"""
