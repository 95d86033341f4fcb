"""The atomic steps, one Lua script each, on one stream's keys. script.py calls them and types their answers.

prelude.lua   put in front of each: the keys, the clock
functions.lua behind it: blocks of ids, the boot rule, holding a request, publishing, the ending
create.lua    a stream with its event 1           seize.lua     take the pen and write the ending (cancel, sweeper)
claim.lua     a worker takes the pen              restore.lua   put back a stream that Redis lost
append.lua    add events, renew the lease         archived.lua  the archive holds it: retention starts
extend.lua    add events, the short way           renew.lua     renew the lease, the short way
tail.lua      where the log ends
release.lua   give the pen back                   erase.lua     content goes, a tombstone stays
inputs.lua    tell the agent something            produce.lua   append to a shared stream, close it
copy.lua      a fork gets its source's events      prolong.lua   a shared stream is read, and lives on
"""
