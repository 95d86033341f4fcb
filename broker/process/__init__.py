"""Processes: what all of ours share, and what starts and watches them for `lastevent up`.

first_process.py  the first process of a container heeds signals from its first line on
loops.py        the loops of a process, started again when they fail
parent.py       a child ends when its parent does
logs.py         what a process writes to its log, and what never gets there
lines.py        a line of it as JSON
listener.py     the listening socket of a web process
descriptors.py  how many descriptors this process may have
imports.py      imports that the cycle collector never walks
admin.py        the admin port: metrics and readiness of a process, or of a supervisor's children
scrapers.py     whose key opens its metrics where others than this machine reach it
supervisor.py   `up` and `serve --web N`: children started, watched, restarted and ended in order
app_options.py  the options that give workers an app, and how they are passed on
environments.py the environment of each of those children: its own secrets and nobody else's
providers.py    which model providers are set up here
embedded.py     the embedded Valkey: one owner, one server, one data directory
clean_stop.py   the mark of a clean stop, which the next server may continue from
"""
