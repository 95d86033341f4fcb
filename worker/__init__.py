"""The worker: takes queued streams, runs each against its provider, and appends its events to the log.

main.py         the process, put together
worker.py       Worker: claims streams, runs each in a task, keeps their leases; and how it leaves
dispatch.py     arq's queue hands streams to this worker, as far as it has room
places.py       the places of its streams: how much of a tenant runs at once
execution.py    a claimed stream, from its claim to exactly one ending
generation.py   one generation: the answer of a model
turns.py        one turn of a model, with its tries, its chain and its attempts
stage.py        what a worker says in one stream: attempts, what is said again after a restart, what is gathered
spending.py     what a generation has counted and cost, over all its tries
visibility.py   what of it users see, and what is for operators
sentences.py    a text in pieces, as sentences that can be spoken while it goes on
speaking.py     writes a stream that is told in sentences too
schema.py       whether an answer is what its schema asks for
arguments.py    a tool's arguments while a model still says them
attempts.py     how often a generation may start, and what viewers learn when it may not start again
providers/      the model providers, each behind one interface
heartbeat.py    renews the leases of the streams that this worker writes, and stops one whose pen was taken (a cancel)
sweeper.py      finds streams without a living owner, and takes them over or ends them
courier.py      delivers webhooks: what is due, and when it is tried again
sending.py      one webhook, sent once: to an address that was checked
hearing.py      the connection for it, that reads little of what a receiver says
waiting.py      an agent's stream, where its agent is not: its viewers are told, its app's queue has it
abandonment.py  cancels a generation without viewers
agents/         what agents need beside their models
archiving/      takes what has ended out of Redis into the archive
standin/        a loopback server in a provider's place
checking.py     python -m worker.checking: whether providers take their keys, for `lastevent doctor --providers`
__main__.py     python -m worker: what `lastevent work` and `lastevent up` start
"""
