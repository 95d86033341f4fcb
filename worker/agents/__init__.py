"""Agents: users' own code, in processes of its own, on a log that survives it. Without an app none of it is loaded.

work.py         what a worker with an app does besides: it announces its agents, and runs their streams
run.py          a stream that an agent answers, from its claim to its ending
attempt.py      what all agents of a stream share while it is tried once
own_code.py     a run of a team's own code
loop.py         the built-in loop of an Agent(...): turn, calls, turn
history.py      what its model is asked: instructions, tools, and all that was said
speech.py       what of a model's turn viewers see, and which calls are in it
caps.py         what a run may do at most, per turn, run and session
approvals.py    a person's word before a call
inbox.py        what an agent is told while it runs, in the log and in order
inputs.py       what callers tell an agent while it runs, and their decisions about approvals
journal.py      what a stream's log says of an agent's calls, turns, approvals and inputs
joining.py      what is said again is said in fewer events
calls.py        the calls of agents: each is in the log before it runs, and before its result is used
stage.py        the stage of an agent's stream: several speak at once, and what they finish is kept
app.py          the processes of the app: started, kept, replaced, ended
process.py      one of them, as the worker sees it, and the limits that it is held to
runs.py         a run in it: what it says is handled in order, until it has ended
lines.py        the wire: a JSON object a line
reload.py       notices when the code of the app changes
in_text.py      a loop whose model acts in text
transform.py    models that act in text, at a provider's stream
acting.py       what each way of acting in text shares: markers are held back, calls are read
react.py        Thought, Action, Observation, Final Answer
tags.py         <think> and <tool>
"""
