-- extend(claim id, events in the log, t, [id, kind, data] …) → 1, or 0: slow, nothing was done
--
-- The short way of writing, for events that change nothing but the log: two fifths of what `append` costs Redis. It has
-- no prelude. A writer takes it when nothing has happened since its last answer, which told it how many events the log
-- has; whatever is not a 1 sends it the whole way, which finds out what happened. (An answer of its own, too: an array
-- is a fourteenth of the call.)
-- Each fence is needed (tests/protocol):
--  the claim id   the pen: between a claim and its first event the old writer would still write. It is the field that
--                 every step which gives the pen away has always written, also of releases that know no short way
--  the length     after Redis has lost the end of the log, this writer has to put that back first, under its old ids.
--                 It also sees an ending by seizure, and a repetition of this very call
-- and two of the writer (writer.py):
--  a pen's first events go the whole way: one claimer may have had another pen under this claim id, which Redis is back
--                 at; the log was shorter then
--  never after its process stood still: Redis may have lost that another took the pen
-- Who has ended a stream writes nothing more. That ids go up is XADD's own rule. Leases are renewed by heartbeats alone.
local LOG = KEYS[1]
if redis.call('HGET', KEYS[2], 'claim') ~= ARGV[1] or redis.call('XLEN', LOG) ~= tonumber(ARGV[2]) then
  return 0
end
local t = ARGV[3]
if #ARGV == 6 then -- nearly always, and a table is a twentieth of the call
  redis.call('XADD', LOG, ARGV[4], 'k', ARGV[5], 'd', ARGV[6], 't', t)
  redis.call('PUBLISH', KEYS[3], ARGV[4] .. '\n' .. t .. '\n' .. ARGV[5] .. '\n' .. ARGV[6])
  return 1
end
local published = {}
for i = 4, #ARGV, 3 do
  redis.call('XADD', LOG, ARGV[i], 'k', ARGV[i + 1], 'd', ARGV[i + 2], 't', t)
  published[#published + 1] = ARGV[i] .. '\n' .. t .. '\n' .. ARGV[i + 1] .. '\n' .. ARGV[i + 2]
end
redis.call('PUBLISH', KEYS[3], table.concat(published, '\n'))
return 1
