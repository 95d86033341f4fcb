"""START HERE. The log: a stream's events in Redis, the steps that change them, and the writers that heal them.

Its words: the writer of a stream holds the *pen* (epoch, claim id, base) for as long as its *lease* runs and is
renewed. A *seizure* takes the pen and writes the ending in one step, as a cancel does. To *heal* is to put back what
Redis lost.

stream_log.py   StreamLog, which everything revolves around: one method a step, and the reads
steps.py        the values that steps take and return: the pen, a claim, an append, a seizure, a page
script.py       how each Lua script is called, and what its answer means
scripts/        the steps themselves: one atomic Lua script each
servers.py      which Redis server this is, since when, and who must wait after a restart or a failover (the boot rule)
event.py        the event, and the forms in which it is stored and published
turn.py         the assistant's message of an answer, for the next request
keys.py         every Redis key, on one screen
meta.py         what is kept of a stream beside its events: each field and its copies declared once; NewStream
request.py      the requests of streams, each kept once, and the streams that hold it
hooks.py        webhooks: an ending, until its receiver has it
inputs.py       what an agent is told while it runs, and the approvals that it asks for
index.py        which streams and sessions there are, newest first
writer.py       StreamWriter numbers events at once; GroupCommit carries them to the log
clock.py        what time it is in Redis, by its last answer
pulse.py        notices that this process was stopped or suspended for a lease: then its writers may not heal
seizures.py     every cancel goes through here: it keeps the ending for a lease, and puts it back if Redis loses it
given.py        stream ids that follow from a name of the caller's
idempotency.py  a repeated request leads to the same stream
secret.py       the secret that signs tokens, where none is configured
access.py       the access record: who saw which events
views.py        the access record's records in Redis, and how many there may be
presence.py     who follows a stream now: pure, from the access record to what callers are told
deeds.py        acts of callers, until the archive has them
erasures.py     orders to erase a person, until they are carried out
models.py       the models that workers can run, as they announce them
agents.py       the agents that workers can run, and when a worker last said so
needs.py        what a start needs of Redis: permissions, commands, a primary; asked by name
queue.py        arq's queues of streams that wait for a worker, or for a worker of an app
running.py      how much of a tenant runs at once, and its streams that wait until they may
rfc3339.py      times as callers see them
durable.py      the events of a shared stream (Durable Streams)
paths.py        which shared stream is found where, and which forks a path waits for
burial.py       the end of a shared stream whose life is over, or that no path names
readable.py     what the reader of a log needs of it, whether it is in Redis or in the archive
"""
