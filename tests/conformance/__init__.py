"""conformance.json: what every client of ours does, as cases in virtual time; its `format` says how they are read."""
