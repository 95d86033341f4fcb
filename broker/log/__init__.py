"""START HERE. The log: a stream's events in Redis, the steps that change them, and the writers that heal them.

stream_log.py   StreamLog, which everything revolves around: one method a step, and the reads
steps.py        the values that steps take and return: the pen, a claim, an append, a seizure, a page
script.py       how each Lua script is called, and what its answer means
scripts/        the steps themselves: one atomic Lua script each
servers.py      which Redis server this is and since when: the boot rule, after a restart or a failover
event.py        the event, and the forms in which it is stored and published
keys.py         every Redis key, on one screen
meta.py         what is kept of a stream beside its events: each field declared once
index.py        which streams and sessions there are, newest first
writer.py       StreamWriter numbers events at once; GroupCommit carries them to the log
pulse.py        notices that this process stood still for a lease, and so may not heal
seizures.py     endings written by taking the pen, kept for a lease
idempotency.py  a repeated request leads to the same stream
access.py       the access record: who saw which events
queue.py        arq's queue of streams that wait for a worker
readable.py     what the reader of a log needs of it, whether it is in Redis or in the archive
"""
