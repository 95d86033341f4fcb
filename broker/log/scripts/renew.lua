-- renew(claim id, lease ms, usage or '', events in the log, id of the last one, bytes of their data)
--   → now (ms), or 0: slow, nothing was done
--
-- The short way of a renewal: an append without events, of a writer that knows the log, as extend.lua is of one with
-- events. The fences are the same ones (tests/protocol). Without the length, a writer would be told that all is well
-- when Redis has lost the end of its log. It brings meta up to what `extend` has added meanwhile.
if redis.call('HGET', KEYS[2], 'claim') ~= ARGV[1] or redis.call('XLEN', KEYS[1]) ~= tonumber(ARGV[4]) then
  return 0
end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local lease_until = string.format('%d', now + tonumber(ARGV[2]))
if ARGV[3] == '' then
  redis.call('HSET', KEYS[2], 'lease_until', lease_until, 'tail', ARGV[5], 'events', ARGV[4], 'bytes', ARGV[6])
else
  redis.call('HSET', KEYS[2], 'lease_until', lease_until, 'tail', ARGV[5], 'events', ARGV[4], 'bytes', ARGV[6],
    'usage', ARGV[3])
end
return now
