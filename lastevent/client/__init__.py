"""The client: start, follow and tell, over as many connections as it takes. It needs httpx2 alone.

    from lastevent import Client

    with Client("http://127.0.0.1:8000", key) as client:
        for event in client.start("Hello"):
            print(event.kind, event.data)

sync.py          Client, Stream: the driver that blocks
asynchronous.py  AsyncClient, AsyncStream: the driver that awaits
following.py     Following: what each answer of a server means, and when to come back; no I/O
calls.py         single requests, what they say and what their answers mean; no I/O
frames.py        Server-Sent Events from bytes that are cut anywhere
lines.py         the same of NDJSON: what `raw` is read as
producer.py      Producer, AsyncProducer: the drivers of what a process of yours writes
opening.py       how a producer comes to its stream: started, or taken over; no I/O
outbox.py        what a producer has said, what of it is unsent, and what an answer means; no I/O
forward.py       forward: a request of Starlette's goes on to the server, its answer back as it comes
relay.py         which requests and answers pass through an endpoint, and what of them
once.py          one request of a producer's or an endpoint's
folding.py       fold: the answer as its events tell it
answer.py        Answer: what was said so far, and how far that is
partial.py       what JSON that was cut says so far
options.py       what both clients are given, and how they take it
errors.py        StreamError, and what is lost for now
"""
