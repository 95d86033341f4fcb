"""What a caller can do, without HTTP: what the web tier, and every later protocol, shares.

streams.py   start, regenerate, cancel, append, erase, look up
durable.py   shared streams by their paths: create, fork, append, close, read, delete
allowed.py   what a tenant may ask for: models, agents, tokens
bodies.py    what comes in: one strict model a body
webhook.py   whether a start may name this webhook
agent_input.py    whether an input is what its agent takes
output_schema.py  whether a caller's JSON Schema is one, and cheap
reading.py   a stream's events, its export, its viewers and its seal, for one caller
erasing.py   erasing a person: the order, and how far it has come
acts.py      who did what, newest first
listing.py   streams and sessions, newest first, in pages
record.py    what goes out, as JSON: a stream's record, a viewer's, a verdict, the models, the agents
totals.py    what several streams used and cost together
masks.py     masks, for callers who may not see everything
masking.py   the threads that apply them, and the queue before those
"""
