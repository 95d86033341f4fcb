"""Out of Redis into the archive.

archiver.py   the loop: one worker at a time has its turn at erasures, streams and viewers' records
streams.py    streams that have ended; what a crash after each step leaves
erasures.py   what was ordered to be erased, and what retention asks for
views.py      the access record of viewers that have gone
"""
