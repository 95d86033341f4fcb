"""The stand-in: a loopback server in a provider's place, for demos, tests and benchmarks. It is not a model.

directives.py       what a message asks of it, between double brackets
calling.py          which tools of the request it calls, and with which arguments
words.py            the text it answers with
reply.py            Reply: what is said, how fast, with which fault; the same on every wire
wire.py             Wire: what each wire turns into bytes
anthropic_wire.py   Anthropic's Messages
responses_wire.py   OpenAI's Responses
chat_wire.py        OpenAI's Chat Completions
gemini_wire.py      Gemini's streamGenerateContent
openai_errors.py    what OpenAI's two say alike
framing.py          the line ends, pieces and compression of an answer's bytes
server.py           StandIn: the server, in a thread of its own
__main__.py         python -m worker.standin: the server by itself
"""
