"""Agents, on the worker's side.

inputs.py       what callers tell an agent while it runs, and their decisions about approvals
"""
