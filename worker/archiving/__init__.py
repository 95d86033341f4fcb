"""Archiving: ended streams move from Redis into the archive, and erasures are carried out there.

archiver.py   the loop: one worker at a time has its turn at erasures, streams and viewers' records
streams.py    ended streams; what a crash after each step leaves
erasures.py   what callers ordered, and what retention demands
figures.py    how much waits, for the gauges
views.py      the access record of viewers that have left
"""
