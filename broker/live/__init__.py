"""From the log to its viewers, without a web framework. The heart is tail.py: from a viewer's cursor to what it is
sent next.

tail.py          replay, then follow: one loop over one cursor, with its races
hub.py           one Redis subscription for each followed stream, shared by its viewers; serves the topics in turn
topic.py         a followed stream: the ring of its recent events, and the viewers at its tail, written to directly
lane.py          a connection's transport, as a topic writes to it; how it is dropped
folded.py        a stream in a dialect's words: the states behind its events, shared by its viewers
window.py        how many events a viewer may be sent beyond those that it has acknowledged
presence.py      who follows a stream now: read by one for all who ask, and watched
conversation.py  a session that one viewer follows: which streams are opened, from where, and when
ledger.py        what of it the viewer has been given: the state behind its cursor
roster.py        which streams a session has
together.py      the steps of several streams as one connection can write them
subscription.py  the one Redis connection of a hub
"""
