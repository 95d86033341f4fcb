-- erase(erased ms, retention ms, [meta field, value] … of the tombstone) → OK, erased ms
--
-- Remove the stream's content and leave a tombstone: it says that there was a stream, and keeps writers from putting
-- it back. A stream that only the archive has gets its tombstone here too: it hides the stream until the archive has
-- erased it. With an archive (retention 0) the tombstone stays until then. Repeating it is harmless.
local m = redis.call('HMGET', META, 'state', 'erased')
if m[1] and not TERMINAL[m[1]] then
  return { 'RUNNING' }
end
if m[2] then
  return { 'OK', tonumber(m[2]) }
end
redis.call('DEL', LOG, META, INPUTS, PRODUCERS)
redis.call('HSET', META, 'erased', ARGV[1], unpack(ARGV, 3))
if ARGV[2] ~= '0' then
  redis.call('PEXPIRE', META, ARGV[2])
end
return { 'OK', tonumber(ARGV[1]) }
