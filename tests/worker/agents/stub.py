"""A process of an app that does what none should, and says so in the wire's own lines: `python stub.py --fd N APP`.

The real one (lastevent/host) refuses to do such things. What a run does is its agent's name.
"""

import json
import os
import signal
import socket
import sys
import time

wire = socket.socket(fileno=int(sys.argv[2]))
lines = wire.makefile("rb")
runs = {}
is_stopping = False


def say(op, **fields):
    wire.sendall(json.dumps({"op": op, **fields}).encode() + b"\n")
    if op == "end":
        over(fields["run"])


def over(run):
    runs.pop(run, None)
    if is_stopping and not runs:
        sys.exit(0)


def flood(run, n):
    """Numbers, as far as there is credit."""
    while run["credit"] and run["sent"] < n:
        run["credit"], run["sent"] = run["credit"] - 1, run["sent"] + 1
        say("event", run=run["name"], kind="text_delta", data={"text": str(run["sent"])})
    if run["sent"] == n:
        say("end", run=run["name"], result=n)


def begin(run, agent, given):
    name = run["name"]
    match agent:
        case "flood":
            flood(run, given)
        case "mixed":
            say("event", run=name, kind="text_delta", data={"text": "before"})
            say("ask", run=name, id=1, what="open_call", data={"tool": "a"})
            say("event", run=name, kind="text_delta", data={"text": "between"})
            say("ask", run=name, id=2, what="open_call", data={"tool": "b"})
        case "greedy":
            for n in range(given):
                say("event", run=name, kind="text_delta", data={"text": str(n)})
        case "curious":
            for n in range(given):
                say("ask", run=name, id=100 + n, what="open_call", data={"tool": str(n)})
        case "environment":
            say("end", run=name, result=dict(os.environ))
        case "stuck":
            time.sleep(1000)
        case "exit":
            say("event", run=name, kind="text_delta", data={"text": "last words"})
            os._exit(3)
        case "segfault":
            os.kill(os.getpid(), signal.SIGSEGV)
        case "long":
            say("event", run=name, kind="text_delta", data={"text": "x" * 5_000_000})
        case "long_for_nobody":
            wire.sendall(b"x" * 5_000_000 + b"\n")
        case "garbage":
            wire.sendall(b"Loading weights...\n")
        case "odd":
            say("event", run=name, kind="text_delta", data={"text": "\ud800", "n": float("nan")})
            say("event", run=name, kind="noted", data={"n": [7, 2**63 - 1, 2**70, 10**400]})
            wire.sendall(b'{"op": "event", "run": "%b", "kind": "noted", "data": {"n": 1e400}}\n' % name.encode())
            say("end", run=name, result=None)
        case "blocked":
            say(
                "end", run=name, error={"code": "agent_blocked", "type": "AgentBlocked", "message": "", "traceback": ""}
            )
        case "held_up":
            say("held_up", run=name, seconds=1.0, stack='File "app.py", line 5, in think')
            say(
                "end",
                run=name,
                error={"code": "agent_failed", "type": "KeyError", "message": "'pin'", "traceback": "T"},
            )


def cancelled(run, agent):
    if agent != "deaf":
        say("event", run=run["name"], kind="text_delta", data={"text": "cleaning up"})
        say("ask", run=run["name"], id=9, what="open_call", data={"tool": "late"})
    if agent not in ("deaf", "finally"):
        say("end", run=run["name"], error={"code": "cancelled"})


app = sys.argv[3]
if app == "written":
    with open("behaviour.py") as file:
        app = file.read()
match app:
    case "broken":
        say("failed", message="ModuleNotFoundError: No module named 'nowhere'", traceback="Traceback: line 1")
        sys.exit(1)
    case "dies":
        os._exit(7)
    case "imports":
        time.sleep(1000)
    case "empty":
        say("hello", protocol=1, agents=[])
    case _:
        named = [{"name": "flood", "kind": "code", "input_schema": {"type": "integer"}, "tools": [], "show": ["args"]}]
        say("hello", protocol=1, agents=named)

for line in lines:
    message = json.loads(line)
    run = runs.get(message.get("run"))
    match message["op"]:
        case "run" | "open":
            run = {"name": message["run"], "agent": message["agent"], "credit": message["credit"], "sent": 0}
            run["input"] = message["input"]
            runs[message["run"]] = run
            begin(run, message["agent"], message["input"])
        case "credit" if run:
            run["credit"] += message["n"]
            if run["agent"] == "flood":
                flood(run, run["input"])
        case "cancel" if run:
            cancelled(run, run["agent"])
        case "close":
            over(message["run"])
        case "reply" if run:
            if message["id"] == 9:
                say("end", run=run["name"], result=message["error"]["code"])
            elif message["id"] >= 100:
                say("end", run=run["name"], result=[message["id"] - 100, message["error"]["code"]])
            elif message["id"] == 2:
                say("end", run=run["name"], result=message.get("ok") or message["error"])
        case "ask":
            match message["what"]:
                case "check":
                    say("reply", id=message["id"], ok={"needs_approval": False, "asked": message["data"]})
                case "call":
                    error = {"code": "failed", "message": "no", "retry": True, "type": "ToolError", "traceback": "T"}
                    say("reply", id=message["id"], error=error)
                case "instructions":
                    say("reply", id=message["id"], ok={"text": "x" * 5_000_000})
        case "cancel_ask":
            say("event", run=next(iter(runs)), kind="noted", data={"cancelled": message["id"]})
        case "ping":
            say("pong", n=message["n"])
        case "stop":
            is_stopping = True
            over(None)
