"""The command `lastevent`: what people and scripts type. It talks to servers by HTTP, and starts the parts.

help.py         the list of commands, in groups
version.py      the version, at once
cli.py          the table of commands, and those that run the parts: up, serve, work
generations.py  generate, follow, cancel, replay
screen.py       a stream as it is written to a terminal
audit.py        ls, sessions, views, export, verify, deeds, erase
limits.py       limits, limits set
keys.py         keys create, list, revoke, export, import
which_redis.py  the Redis that these two speak to, and what they leave there of what they did
doctor.py       checks of this machine, the stores and the server; machine.py has those of the machine, findings.py
                what is found
client.py       the server, called and followed by lastevent's client; its refusals in words
terminal.py     notes, tables, JSON, errors, and the options that commands share
"""
