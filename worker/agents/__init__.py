"""Agents: users' own code, in processes of its own, on a log that survives it. A worker without an app loads none of it.

app.py       the processes of the app: started, kept, replaced, ended
process.py   one of them, as the worker sees it, and the limits that it is held to
runs.py      a run in it: what it says is handled in order, until it has ended
lines.py     the wire: a JSON object a line
reload.py    notices when the code of the app changes
"""
