"""HTTP: from a request to the bytes of its answer.

app.py          the ASGI application, put together: the tier, its routes, and what every request passes first
tier.py         Tier: what a web process holds; which grant a request has
routes/         the routes, each a function, a file for each thing a caller wants
inputs.py       what routes take from addresses and headers
presence.py     work for as long as its caller is there
viewer.py       one viewer's connection: steps → bytes → ASGI, the stall that cuts a slow one, limits, drain
replay.py       the log again at its own pace, as steps for a viewer
endings.py      the names of the ways in which a connection ends, and when a viewer comes back
door.py         what every request passes first: a request id, the rules of a keyless server, the last net
strict_json.py  bodies, read strictly
problems.py     errors as problem+json (RFC 9457)
openapi.py      the OpenAPI document
metrics.py      Prometheus
protocol.py     uvicorn's HTTP protocol, which offers a connection's transport to the answer (the direct lane)
server.py       the web process: its socket, its signals, its drain
"""
