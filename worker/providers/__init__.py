"""The model providers, each behind one interface.

provider.py   what a provider is to a worker: a stream of events with one Finish at its end, or a ProviderFailure
choose.py     the registry: which providers there are, and how each is made
anthropic.py  Anthropic's Messages API, by its SDK
"""
