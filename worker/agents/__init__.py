"""Agents, on the worker's side.

inputs.py       what callers tell an agent while it runs, and their decisions about approvals
journal.py      what a stream's log says of an agent's calls, turns, approvals and inputs
calls.py        the calls of agents: each is in the log before it runs, and before its result is used
stage.py        the stage of an agent's stream: several speak at once, and what they finish is kept
transform.py    models that act in text, at a provider's stream
acting.py       what each way of acting in text shares: markers are held back, calls are read
react.py        Thought, Action, Observation, Final Answer
tags.py         <think> and <tool>
"""
