-- seize(claim id, kind, data, lease ms, retention ms, '1' only if the lease has run out)
--   → OK, state, id of the ending, id of the last event before it, 1 if it had already ended
--
-- Take the pen and write the ending in one step: how a cancel works from any server, at once, whether or not a
-- worker has started, lives or is dead. The worker finds itself fenced. The same seizure again (its reply was
-- lost) is answered like the first.
local claim, kind, data, lease_ms, retention_ms = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4]), ARGV[5]
local m = redis.call('HMGET', META, 'state', 'claim', 'tail', 'stopped_after', 'lease_until', 'created', 'boot')
local state, tail = m[1], tonumber(m[3])
if not state then
  return { 'NOT_FOUND' }
end
if TERMINAL[state] then
  return { 'OK', state, tail, tonumber(m[4]), m[2] == claim and 0 or 1 }
end
if ARGV[6] == '1' and m[5] and tonumber(m[5]) > now then
  return { 'HELD', tonumber(m[5]) }
end
local wait_ms = healing_ms(m[7], lease_ms)
if wait_ms > 0 then
  return { 'HEALING', wait_ms }
end
local id = next_block(tail, tonumber(m[6]))
add(id, kind, data, int(now))
redis.call('HINCRBY', META, 'epoch', 1)
redis.call('HINCRBY', META, 'events', 1)
redis.call('HSET', META, 'claim', claim, 'base', int(id), 'tail', int(id))
finish(kind, data, tail, retention_ms)
publish()
return { 'OK', kind, id, tail, 0 }
