"""When a silent connection to Redis counts as dead."""

from __future__ import annotations

SOCKET_TIMEOUT_S = 5.0
"""A Redis that does not answer for so long is away: callers get an error rather than hang."""

ASK_AFTER_S = 0.2
"""A connection that was silent for so long may be dead. Firewalls and address translators forget silent connections,
most after minutes, without a word to either side: what is sent into one then disappears. So a pool's connection is
asked first. Under load no connection is silent for so long, and nothing is asked."""

ANSWER_S = 1.0
"""A connection that was silent, and does not answer within this, is made anew. A Redis that only was slow loses nothing
by that: a pool's connection has only been asked, and a batch may be sent again."""
