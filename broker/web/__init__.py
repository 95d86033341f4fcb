"""HTTP: from a request to the bytes of its answer.

app.py          the ASGI application, put together: the tier, its routes, and what every request passes first
tier.py         Tier: what a web process holds
grants.py       who may call a route: declared beside it, checked before anything else
follow.py       what every follow of a stream begins with: the order of its checks, where its events come from
routes/         the routes, each a function, a file for each thing a caller wants
inputs.py       what routes take from addresses and headers
while_here.py   work for as long as its caller is there
viewer.py       one viewer's connection: steps → bytes → ASGI, the stall that cuts a slow one, limits, drain
dialect.py      what the routes of all dialects share: a start, a viewer, the answer as it is now, errors
durable.py      how a reader of Durable Streams follows: events, and a long poll
conversation.py  one viewer of several streams
replay.py       the log again at its own pace, as steps for a viewer
addresses.py    whose request it is, as far as an address tells; how many connections one has
places.py       how many viewers a process, a stream, a token, a subject and a tenant may have
rates.py        how often a token may connect, and an address present what is not valid
endings.py      the names of the ways in which a connection ends, and when a viewer comes back
door.py         what every request passes first: a request id, the rules of a keyless server, the last net
intake.py       how many bytes of large bodies there are at once, and their turns
strict_json.py  bodies, read strictly
bare.py         what a body holds outside of its texts, found before it is parsed
problems.py     errors as problem+json (RFC 9457)
openai_error.py  errors as OpenAI's API has them
anthropic_error.py  errors as Anthropic's API has them
openapi.py      the OpenAPI document
answers.py      the forms of JSON answers, for that document
metrics.py      Prometheus
bounded.py      uvicorn's HTTP protocol with bounds: what one connection can take from the others
tally.py        what strangers cause, as one line a minute in the log
refusals.py     why a connection is refused before any route sees it, its answer, one line a minute in the log
protocol.py     the bounded protocol, which offers a connection's transport to the answer (the direct lane)
handshake.py    a WebSocket's: from a request's head to 101, or to a problem
websocket.py    its frames (RFC 6455), without I/O
socket_connection.py  one of them: who writes to it and when, how it ends
sockets.py      all of a process: the timer that looks after them, their drain
close_codes.py  why one closes, for clients
socket.py       what its client asks for, and what it follows: ops in their order, credentials, its end
socket_ops.py   what a client may say on it: each op's fields
socket_follow.py  a stream that it follows: a viewer, one task
socket_session.py  a session that it follows: which of its streams, and when
server.py       the web process: its socket, its signals, its drain
"""
