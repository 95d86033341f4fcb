"""Frameworks of others with a team's agent in them: docs/FRAMEWORKS.md, as it stands, in the apps of real workers.

environments.py  their virtual environments, which have none of Lastevent's dependencies; their pins are *.txt beside it
bank.py          what the team of the document has already
"""
