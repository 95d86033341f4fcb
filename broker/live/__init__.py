"""From the log to its viewers, without a web framework. The heart is tail.py: cursor → next step.

tail.py          replay, then follow: one loop over one cursor, with its races
hub.py           one subscription a stream a process; topics are served in turn
topic.py         a followed stream: the ring of its recent events, and the viewers at its tail, written to directly
lane.py          a connection's transport, as a topic writes to it
subscription.py  the one Redis connection of a hub
"""
