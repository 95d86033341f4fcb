-- let_go(sid, still held for (ms), 0: no longer) → OK
--
-- On the slot of the request: this stream has ended, and needs it for as long as its own keys live. With the last
-- holder the request is removed. Repeating it is harmless, and so is letting go of what is not held.
if ARGV[2] == '0' then
  redis.call('ZREM', HOLDERS, ARGV[1])
else
  redis.call('ZADD', HOLDERS, 'XX', int(now + ARGV[2]), ARGV[1])
end
live_as_long_as_held()
return { 'OK' }
