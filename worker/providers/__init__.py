"""The model providers, each behind one interface.

To add one: its adapter in a file of its own here, a maker in choose.py, and its variables in PROVIDERS
(broker/settings.py).

provider.py   what a provider is to a worker: a stream of events with one Finish at its end, or a ProviderFailure
failures.py   how one fails: codes, what they mean, and the transport's errors translated
reading.py    the one loop over an answer
choose.py     the registry: which providers there are, and how each is made
http.py       the HTTP client of all of them
transport.py  aiohttp under it
bounds.py     how much of an answer is taken, and how it is refused beyond that
sse.py        server-sent events out of an answer's bytes
request.py    what translating a request shares: its parts, each with its place in it
sdk_types.py  provider_options against an SDK's own types
openai.py     OpenAI's Responses API, by its SDK
anthropic.py  Anthropic's Messages API, by its SDK
gemini.py     Google's Gemini API, by its SDK: the request and its way, with gemini_request.py (what is asked),
              gemini_answer.py (what is said; gemini_calls.py, gemini_grounding.py, gemini_turn.py), gemini_failures.py
"""
