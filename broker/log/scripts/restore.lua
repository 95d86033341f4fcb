-- restore(claimed under, created, lease ms, held for (ms) or '', request or '', meta field, value, …) → OK
--
-- Put back a stream that vanished whole (Redis lost its creation): meta and event 1, running, under the calling
-- writer's pen, and the request (unless it is another stream's). The writer then appends as usual, and so puts back the
-- rest from its base on.
-- A stream that is gone on the very server that ran its writer's claim was not lost but removed (its retention is
-- over): it is not restored. One that is there again, or was erased (a tombstone stays), is left alone: append answers.
local claimed_under, created, lease_ms = ARGV[1], ARGV[2], tonumber(ARGV[3])
if redis.call('EXISTS', META) == 1 then
  return { 'OK' }
end
if server() == claimed_under then
  return { 'NOT_FOUND' }
end
redis.call('HSET', META, 'state', 'running', 'created', created, 'tail', '1', 'events', '1', 'bytes', '2',
  'lease_until', int(now + lease_ms), unpack(ARGV, 6))
if ARGV[5] ~= '' then
  redis.call('SET', REQUEST, ARGV[5], 'NX')
  hold(string.match(META, '{(.-)}'), ARGV[4])
end
redis.call('DEL', LOG)
redis.call('XADD', LOG, '1-0', 'k', 'queued', 'd', '{}', 't', created)
return { 'OK' }
