-- prolong(life ms) → OK
--
-- Somebody reads a shared stream whose life is so long from its last use on.
local m = redis.call('HMGET', META, 'state', 'erased', 'expires')
if not m[1] or m[2] or not m[3] or tonumber(m[3]) <= now then
  return { 'NOT_FOUND' }
end
redis.call('HSET', META, 'expires', int(now + ARGV[1]))
return { 'OK' }
