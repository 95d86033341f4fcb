-- tail() → OK, id of the log's last event
--
-- For who wants to know where a stream stands, and not what its last event says, which may be a megabyte.
local last = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)[1]
if not last then
  return { 'NOT_FOUND' }
end
return { 'OK', tonumber(string.match(last[1], '^%d+')) }
