-- tail() → OK, id of the log's last event; of the last one before the ending, if there is one
--
-- For who wants to know where a stream stands, and not what its last event says, which may be a megabyte. The caller has
-- read that the stream runs. If it has ended since, the answer belongs to what the caller has read: it is where the
-- stream stood when it ran last, and its ending is still to come.
local m = redis.call('HMGET', KEYS[2], 'state', 'stopped_after')
if m[1] ~= 'running' and m[2] then
  return { 'OK', tonumber(m[2]) }
end
local last = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)[1]
if not last then
  return { 'NOT_FOUND' }
end
return { 'OK', tonumber(string.match(last[1], '^%d+')) }
