"""Runs Python clients on cases: `python drive.py cases.json`; see npm/drive.mjs, which does the same for JavaScript."""

import importlib
import json
import sys
import threading


def write(line):
    sys.stdout.write(json.dumps(line) + "\n")  # one write, and so one line, whatever the other threads do
    sys.stdout.flush()


def drive(client, case, url, cursor):
    def show(event_id, kind, data):
        write({"case": case, "id": event_id, "kind": kind, "data": data})

    try:
        how = importlib.import_module(client).follow(url, cursor, show)
        write({"case": case, "how": how})
    except Exception as error:
        write({"case": case, "failed": repr(error)})


sys.path.insert(0, ".")
with open(sys.argv[1]) as file:
    threads = [threading.Thread(target=drive, kwargs=one) for one in json.load(file)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
