-- produce(producer or '', epoch, number, Stream-Seq or '', '1' closes, life (ms) or '', retention ms, max events,
--         max bytes, seen server, when it may be written to there (ms), [kind, data] …)
--   → OK, id of the last event before the ending, state, the producer's last number or '', 1 if it was there already
--
-- Append to a shared stream, close it, or both, in one step. Such a stream has no writer and no lease: any number of
-- producers append, each request by itself. Without events, and not closing, it only renews the stream's life.
-- PRODUCERS has, of each producer, `p:<id>` → its session (epoch) and the number of that session's last request which
-- is in the log; `seq`, the last Stream-Seq; `closed`, which request closed the stream. It is written in this step with
-- the events, so what it says of a request is what the log has, also after Redis has lost the end of both.
-- The order of the checks is the protocol (Durable Streams, section 5.2):
--  1 an older session of the producer is fenced, also of a closed stream
--  2 a closed stream accepts the request that closed it once more, and another close without events; nothing else
--  3 a new session begins with its request 0; a request that is there is not added again; a hole is refused
--  4 a Stream-Seq is larger, byte by byte, than the one before it
--  5 the first append on another server than the stream's waits until lost endings are back, and jumps: no id that
--    Redis may have lost is used again
local producer, epoch, number, seq, closes = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[4], ARGV[5] == '1'
local life_ms, retention_ms = ARGV[6], ARGV[7]
local max_events, max_bytes = tonumber(ARGV[8]), tonumber(ARGV[9])
local HEAD = 11
local count = (#ARGV - HEAD) / 2

local m = redis.call('HMGET', META, 'state', 'tail', 'events', 'bytes', 'boot', 'jumped', 'created', 'base', 'expires',
  'erased', 'stopped_after', 'producer')
local state, tail = m[1], tonumber(m[2])
if not state or m[10] or m[12] ~= 'shared' or (m[9] and tonumber(m[9]) <= now) then
  return { 'NOT_FOUND' }
end
local known = redis.call('HMGET', PRODUCERS, 'p:' .. producer, 'seq', 'closed')
local session, last = string.match(known[1] or '', '^(%d+) (%d+)$')
session, last = tonumber(session), tonumber(last or '-1')
local request = producer == '' and '' or string.format('%.0f %.0f %s', epoch, number, producer)

local function renew()
  if life_ms ~= '' then
    redis.call('HSET', META, 'expires', int(now + life_ms))
  end
end

-- By their bytes. Lua's own comparison goes by the locale of the server.
local function is_larger(a, b)
  for at = 1, math.min(#a, #b) do
    if string.byte(a, at) ~= string.byte(b, at) then
      return string.byte(a, at) > string.byte(b, at)
    end
  end
  return #a > #b
end

if producer ~= '' and session and epoch < session then
  return { 'STALE_EPOCH', session }
end
if TERMINAL[state] then
  local is_again = known[3] == request
  if producer == '' then
    is_again = closes and count == 0
  end
  if not is_again then
    return { 'CLOSED' }
  end
  renew()
  return { 'OK', tonumber(m[11]), state, producer ~= '' and number or '', 1 }
end
if producer ~= '' then
  if session and epoch > session then
    if number ~= 0 then
      return { 'NEW_EPOCH' }
    end
  elseif number <= last then
    renew()
    return { 'OK', tail, state, last, 1 }
  elseif number > last + 1 then
    return { 'SEQUENCE_GAP', last + 1 }
  end
end
if seq ~= '' and known[2] and not is_larger(seq, known[2]) then
  return { 'OUT_OF_ORDER' }
end
if count == 0 and not closes then
  renew()
  return { 'OK', tail, state, '', 0 }
end

local first = tail + 1
local this = server()
if this ~= (m[6] or m[5]) then
  local wait = healing(m[6] or m[5], ARGV[10], tonumber(ARGV[11]), 0)
  if wait then
    return wait
  end
  first = next_block(tail, tonumber(m[8]), tonumber(m[7]))
end

local events, bytes = tonumber(m[3]) + count, tonumber(m[4])
for i = 1, count do
  bytes = bytes + #ARGV[HEAD + 2 * i]
end
if count > 0 and (events > max_events or bytes > max_bytes) then
  return { 'LIMIT' }
end
if this ~= (m[6] or m[5]) then
  redis.call('HSET', META, 'jumped', this, 'base', int(first))
end
if producer ~= '' then
  redis.call('HSET', PRODUCERS, 'p:' .. producer, string.format('%.0f %.0f', epoch, number))
end
if seq ~= '' then
  redis.call('HSET', PRODUCERS, 'seq', seq)
end
for i = 1, count do
  tail = first + i - 1
  add(tail, ARGV[HEAD + 2 * i - 1], ARGV[HEAD + 2 * i], int(now))
end
local before = tail
if closes then
  redis.call('HSET', PRODUCERS, 'closed', request)
  tail, events, state = first + count, events + 1, 'done'
  add(tail, state, '{}', int(now))
  finish(state, '{}', int(now), before, retention_ms)
  bytes = bytes + 2
end
redis.call('HSET', META, 'tail', int(tail), 'events', events, 'bytes', bytes)
renew()
publish()
return { 'OK', before, state, producer ~= '' and number or '', 0 }
