"""The stand-in: a loopback server in a provider's place, for demos, tests and benchmarks. It is not a model.

directives.py       what a message asks of it, between double brackets
words.py            the text it answers with
anthropic_wire.py   the Anthropic Messages wire: a request → its events, whole or with the fault that was asked for
framing.py          the line ends, pieces and compression of an answer's bytes
server.py           StandIn: the server, in a thread of its own
__main__.py         python -m worker.standin: the server by itself
"""
