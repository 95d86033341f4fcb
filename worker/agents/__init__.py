"""Agents: users' own code, in processes of its own, on a log that survives it. Without an app none of it is loaded.

work.py         what a worker with an app does besides: it announces its agents, and runs their streams
app.py          the processes of the app: started, kept, replaced, ended
process.py      one of them, as the worker sees it, and the limits that it is held to
runs.py         a run in it: what it says is handled in order, until it has ended
lines.py        the wire: a JSON object a line
reload.py       notices when the code of the app changes
journal.py      what a stream's log says of an agent's calls, turns, approvals and inputs
calls.py        the calls of agents: each is in the log before it runs, and before its result is used
stage.py        the stage of an agent's stream: several speak at once, and what they finish is kept
"""
