-- copy([id, kind, data, t] …) → OK
--
-- Events of another stream, under the ids and times that they have there, for a shared stream that nobody knows yet.
-- Repeating it is harmless: what is there already is left out.
local m = redis.call('HMGET', META, 'state', 'tail', 'events', 'bytes', 'erased')
if not m[1] or m[5] then
  return { 'NOT_FOUND' }
end
local tail, events, bytes = tonumber(m[2]), tonumber(m[3]), tonumber(m[4])
for at = 1, #ARGV, 4 do
  local id = tonumber(ARGV[at])
  if id > tail then
    add(id, ARGV[at + 1], ARGV[at + 2], ARGV[at + 3])
    tail, events, bytes = id, events + 1, bytes + #ARGV[at + 2]
  end
end
redis.call('HSET', META, 'tail', int(tail), 'events', events, 'bytes', bytes)
return { 'OK' }
