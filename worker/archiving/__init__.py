"""Archiving: ended streams move from Redis into the archive, and erasures are carried out there.

archiver.py   the loop: one worker at a time has its turn at all that follows
streams.py    ended streams; what a crash after each step leaves
turn.py       which worker is at work
erasures.py   what callers ordered, and what retention demands
people.py     whole persons: the streams of a user or of a session
figures.py    how much waits, for the gauges
views.py      the access record of viewers that have left
deeds.py      acts of callers
"""
