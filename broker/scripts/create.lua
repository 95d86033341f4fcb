-- create(lease ms or '', meta field, value, …) → OK, 1 if it is new, created (ms)
--
-- Meta and event 1 in one step, so that no reader can arrive before the stream exists. Repeating it is harmless.
-- An external producer holds the pen from the start: its meta says state running, epoch 1, and it has a lease.
local created = redis.call('HGET', META, 'created')
if created then
  return { 'OK', 0, tonumber(created) }
end
redis.call('HSET', META, 'created', int(now), 'boot', server(), 'tail', '1', 'events', '1', 'bytes', '2',
  unpack(ARGV, 2))
if ARGV[1] ~= '' then
  redis.call('HSET', META, 'lease_until', int(now + ARGV[1]), 'started', int(now))
end
redis.call('XADD', LOG, '1-0', 'k', 'queued', 'd', '{}', 't', int(now))
return { 'OK', 1, now }
