"""The atomic steps, one Lua script each, on one stream's keys. log.py calls them and types their answers."""
