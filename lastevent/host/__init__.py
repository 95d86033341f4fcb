"""The process that runs an app: `python -m lastevent.host --fd N APP`, started by a worker and ended with it.

app.py       imports APP and collects its agents
wire.py      the worker's end: JSON lines on a socket, asks and replies, credit
runs.py      a run: what it says and asks, how it is cancelled, how it ends
serving.py   Host: what the worker wants done, until it goes
watchdog.py  who holds the event loop up, and an end to it
process.py   what the process is: its signals, its standard streams, its parent
__main__.py  the command
"""
