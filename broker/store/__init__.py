"""The stores: how to reach Redis, and the addresses that the settings give. Streams are unknown here.

connect.py      a pool of connections that finds the primary, and a client with our errors
line.py         a connection for batch after batch: the committer's
silence.py      when a silent connection counts as dead
listen.py       the messages of one channel, from a connection that is known to live
errors.py       Redis' own errors, translated at the border
durable.py      writes that are on disk before anybody is told of them
shared.py       one question for all who ask it at the same time
room.py         whether Redis has memory for a new stream
redis_url.py    LASTEVENT_REDIS_URL: one server, a primary with replicas, or Sentinels
archive_url.py  LASTEVENT_ARCHIVE_URL: SQLite or PostgreSQL
webhook_url.py  where webhooks may be sent
host.py         whether something can be a host, or an address for HTTP
"""
