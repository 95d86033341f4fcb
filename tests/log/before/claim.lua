-- claim(claim id, worker, lease ms, seen server, seen since ms)
--   → OK, epoch, base, tail, attempt, events, bytes, server, all of meta, the request unless it is large or another stream's
--
-- Take the pen of a stream that waits, or whose writer's lease has expired. The claimer chose the claim id: the same
-- claim again (its reply was lost) gets the same pen, but not on another server: another worker may have taken over
-- since, and that server may have lost it.
-- Races: two workers claim one stream: the second finds a lease (HELD). A claim and a cancel: the second finds the
-- first one's epoch. A writer that was only slow: its epoch is old from here on, and every write checks it.
local claim, worker, lease_ms = ARGV[1], ARGV[2], tonumber(ARGV[3])
local m = redis.call('HMGET', META, 'state', 'epoch', 'claim', 'base', 'tail', 'attempt', 'lease_until', 'created',
  'boot', 'events', 'bytes', 'on_worker_loss', 'claimed_under', 'counted_from')
local state, epoch, base, tail, attempt = m[1], tonumber(m[2]), tonumber(m[4]), tonumber(m[5]), tonumber(m[6])
if not state then
  return { 'NOT_FOUND' }
end
if TERMINAL[state] then
  return { 'CLOSED' }
end
if m[3] ~= claim then
  if state == 'running' and (tonumber(m[7]) > now or m[12] == 'fail') then
    return { 'HELD', tonumber(m[7]) } -- with 'fail' no worker takes over: the sweeper ends the stream
  end
  local wait = healing(m[9], ARGV[4], tonumber(ARGV[5]), lease_ms)
  if wait then
    return wait
  end
  -- On another server even a first claim jumps: an earlier claim may have been lost.
  if epoch == 0 and m[9] == server() then
    base = tail + 1
  else
    base = next_block(tail, base, tonumber(m[14] or m[8]))
  end
  epoch, attempt = epoch + 1, attempt + 1
  redis.call('HSET', META, 'state', 'running', 'epoch', epoch, 'claim', claim, 'base', int(base), 'attempt', attempt,
    'worker', worker, 'lease_until', int(now + lease_ms), 'claimed_under', server())
  redis.call('HSETNX', META, 'started', int(now))
elseif m[13] ~= server() then
  return { 'HELD', tonumber(m[7]) }
else
  redis.call('HSET', META, 'lease_until', int(now + lease_ms))
end
-- A request of megabytes is read by itself: on its way through a script it is copied, and nobody else is served.
local request = redis.call('STRLEN', REQUEST) <= 1048576 and redis.call('GET', REQUEST)
return { 'OK', epoch, base, tail, attempt, tonumber(m[10]), tonumber(m[11]), server(), redis.call('HGETALL', META),
  request }
