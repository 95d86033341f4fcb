-- create(lease ms or '', reserved (ms) or '', counted from (ms) or '', held for (ms) or '', request, '' or 'stored',
--        meta field, value, …)
--   → OK, 1 if it is new, created (ms)
--
-- Write meta, event 1 and the request (unless it is another stream's) in one step, so that no reader can arrive before
-- the stream exists, and no stream is without its request. Repeating it is harmless.
-- An external producer holds the pen from the start: its meta says state running, epoch 1, and it has a lease.
-- `reserved`: the stream may have been created since that time, and Redis may have lost it together with ids that
-- viewers have seen. So it counts as created then, under an unknown server: its first claim waits for healing, and
-- jumps.
-- `counted from`: the id is made of a name that a client chose. It may have been a stream before, at any time, of which
-- Redis knows nothing. So it begins as the successor of whatever was: it is numbered as if created then, and its epoch
-- is the clock's, which outranks every writer of before. Its first claim finds an epoch, and so jumps.
local created = redis.call('HGET', META, 'created')
if created then
  return { 'OK', 0, tonumber(created) }
end
if ARGV[5] == 'stored' and redis.call('EXISTS', REQUEST) == 0 then -- Redis has lost it in between
  return { 'NOT_FOUND' }
end
local made, boot = now, server()
if ARGV[2] ~= '' then
  made, boot = tonumber(ARGV[2]), ''
end
redis.call('HSET', META, 'created', int(made), 'boot', boot, 'tail', '1', 'events', '1', 'bytes', '2', unpack(ARGV, 6))
if ARGV[3] ~= '' then
  local epoch = math.max(0, 1 + math.floor((now - tonumber(ARGV[3])) / 1000))
  redis.call('HSET', META, 'counted_from', ARGV[3], 'epoch', int(epoch))
end
if ARGV[1] ~= '' then
  redis.call('HSET', META, 'lease_until', int(now + ARGV[1]), 'started', int(now))
end
if ARGV[5] ~= '' then
  if ARGV[5] ~= 'stored' then
    redis.call('SET', REQUEST, ARGV[5])
  end
  hold(string.match(META, '{(.-)}'), ARGV[4])
end
redis.call('XADD', LOG, '1-0', 'k', 'queued', 'd', '{}', 't', int(now))
return { 'OK', 1, made }
