"""The model providers, each behind one interface.

To add one: its adapter in a file of its own here, a line in choose.py, and its variables in PROVIDERS
(broker/settings.py).

provider.py   what a provider is to a worker: a stream of events with one Finish at its end, or a ProviderFailure
failures.py   how one fails: codes, what they mean, and the transport's errors translated
choose.py     the registry: which providers there are, and how each is made
models_file.py  more providers, aliases and prices of the operator's own
chain.py      which model is tried next, and which is left out for now
prices.py     what a turn cost: by genai-prices, or by the models file

http.py       the HTTP client of all of them
transport.py  aiohttp under it
bounds.py     how much of an answer is taken, and how it is refused beyond that
sse.py        server-sent events out of an answer's bytes
reading.py    the one loop over an answer
request.py    what translating a request shares: its parts, each with its place in it
sdk_types.py  provider_options against an SDK's own types

anthropic.py  Anthropic's Messages API, by its SDK: its request, and how it fails
anthropic_answer.py  how its answer is read
openai.py     OpenAI's Responses API, by its SDK
openai_answer.py  its answers, event by event
openai_items.py   the items that they consist of
openai_chat.py  Chat Completions by OpenAI's SDK: OpenAI's, and any compatible server's
chat_answer.py  one answer of that wire
chat_calls.py  the tool calls in it
gemini.py     Google's Gemini API, by its SDK: how a request goes, and how its answer is kept from the SDK
gemini_request.py  what is asked
gemini_answer.py   how its answer is read
gemini_calls.py    the tool calls in it
gemini_grounding.py  its citations
gemini_turn.py     its parts, for the next turn
gemini_failures.py  its error objects
"""
