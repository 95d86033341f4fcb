-- append(epoch, claim, base, first, lease ms, retention ms, max events, max bytes, attempt, claimed under or '',
--        seen server, when endings may be new there (ms), usage or '', bytes of all events before `first` or '',
--        t before which none of these events is, [kind, data, t or ''] …)
--   → OK, tail, now (ms), state, t of the last event that was there already, events in the log, bytes of all or ''
--
-- The whole way of writing; extend.lua is the short one. No event may follow a terminal event in a batch: stream_log.py
-- refuses to send such a batch. New events get Redis' time, or the given one if that is later: so a writer's events are
-- in the order of their times, also of those that extend.lua wrote.
-- extend.lua does not touch meta: what that says of the log (tail, events, bytes) is set here, all three at once, from
-- the log and from what its writer has counted since an answer told it; without that, from the log alone.
-- first 0: after the tail (an external producer that does not number its events, and so cannot retry).
-- Also renews the lease and keeps the usage, if one is given, for an ending by seizure (seize.lua); with no events, that
-- is all it does. Whatever renews the lease keeps the usage: so only the holder of the pen can, of a stream that runs.
-- `kept`: the attempt that wrote the last progress of an agent's stream, a turn or a call's result, set with the event
-- itself. So it is as the log is, also after Redis has lost a part of both and the writer has sent it again.
-- The order of the checks is the protocol:
--  0 a writer whose process stood still for a lease says which server ran its claim. On another server it has no
--    right to heal: another worker may have taken over, and Redis may have lost that
--  1 events that are already there under the same pen are skipped: a retry after a lost reply is harmless, also of the
--    ending. An event that is there under one of these ids but differs was written by another process with the same
--    pen (two copies of one producer): this writer counts as superseded, and its events are never acknowledged
--  2 a finished stream accepts no more events
--  3 an old epoch is fenced
--  4 an epoch newer than meta's: Redis lost the claim with the tail of the log; its writer puts both back (attempt: as
--    its claim had counted). But if the log has gone beyond its base, others have written since, in a time of which it
--    knows nothing: it could add nothing, and would keep the pen
--  5 a hole before the first event: the writer sends again from tail + 1, never from below its base
--  6 a new ending (one without a time) on another server than the stream's waits: a process that keeps a lost ending
--    gets the time to put it back. The pen is kept, the lease renewed
local epoch, claim, base, first = tonumber(ARGV[1]), ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local lease_ms, retention_ms = tonumber(ARGV[5]), ARGV[6]
local max_events, max_bytes = tonumber(ARGV[7]), tonumber(ARGV[8])
local attempt, claimed_under, usage = ARGV[9], ARGV[10], ARGV[13]
local counted_bytes, not_before = tonumber(ARGV[14]), tonumber(ARGV[15])
local HEAD = 15
local count = (#ARGV - HEAD) / 3
local is_ending = count > 0 and TERMINAL[ARGV[#ARGV - 2]]

if is_ending or first == 0 or claimed_under ~= '' then
  -- functions.lua
end

-- Each call and each field costs about half a microsecond of a thread that all streams share. So a field that is
-- seldom needed is read where it is needed, and all fields are written in one call at the end.
local m = redis.call('HMGET', META, 'state', 'epoch', 'claim', 'tail', 'events', 'bytes', 'first_text')
local state = m[1]
if not state then
  return { 'NOT_FOUND' }
end
local tail, length, bytes_there = log_end(tonumber(m[4]), tonumber(m[5]), not counted_bytes and tonumber(m[6]))
if claimed_under ~= '' and claimed_under ~= server() then
  return { 'SUPERSEDED' }
end

local same_pen = epoch == tonumber(m[2]) and claim == m[3]
local skip = 0
local jumped, there_t = nil, 0
if first == 0 then
  -- If Redis has restarted, it may have lost events whose ids were returned to this producer, which keeps no numbers.
  -- None of those ids may name another event. A producer that numbers its events finds itself below the base (GAP).
  local this = server()
  local known = redis.call('HMGET', META, 'boot', 'created', 'jumped', 'counted_from')
  if this ~= (known[3] or known[1]) then
    jumped = this
    base = next_block(tail, base, tonumber(known[4] or known[2]))
  end
  first = math.max(tail + 1, base)
elseif same_pen and first >= base then
  skip = math.max(0, math.min(count, tail - first + 1))
end
if skip > 0 then
  local there = redis.call('XRANGE', LOG, int(first) .. '-0', int(first + skip - 1) .. '-0')
  for i = 0, skip - 1 do
    local fields = there[i + 1] and there[i + 1][2] or {}
    if fields[2] ~= ARGV[HEAD + 3 * i + 1] or fields[4] ~= ARGV[HEAD + 3 * i + 2] then
      return { TERMINAL[state] and 'CLOSED' or 'SUPERSEDED' }
    end
    there_t = tonumber(fields[6])
  end
end
local is_there = same_pen and skip == count
if TERMINAL[state] then
  return is_there and { 'OK', tail, now, state, there_t, length, '' } or { 'CLOSED' }
end
if not same_pen then
  if epoch <= tonumber(m[2]) or base <= tail then
    return { 'SUPERSEDED' }
  end
  redis.call('HSET', META, 'state', 'running', 'epoch', epoch, 'claim', claim, 'base', int(base),
    'attempt', attempt)
  redis.call('HSETNX', META, 'started', int(now))
end

local events, bytes = length + count - skip, counted_bytes or bytes_there
for i = counted_bytes and 0 or skip, count - 1 do
  bytes = bytes + #ARGV[HEAD + 3 * i + 2]
end
if counted_bytes and first + count - 1 == tail then -- all that its writer has counted is what the log has
  bytes_there = bytes
end
-- The writer has the pen, and so keeps its lease, but nothing is added.
local answer
if is_there or count == 0 then
  answer = { 'OK', tail, now, 'running', there_t, length, bytes_there or '' }
elseif first + skip ~= math.max(tail + 1, base) then
  answer = { 'GAP', tail }
elseif is_ending and ARGV[#ARGV] == '' then
  answer = healing(redis.call('HGET', META, 'boot'), ARGV[11], tonumber(ARGV[12]), 0)
end
-- An ending always has room: a full stream must still be able to say that it is full.
local ending_alone = is_ending and count - skip == 1
if not answer and (events > max_events or bytes > max_bytes) and not ending_alone then
  answer = { 'LIMIT' }
end
if answer then
  if bytes_there then
    redis.call('HSET', META, 'lease_until', int(now + lease_ms), 'tail', int(tail), 'events', length,
      'bytes', bytes_there)
  else
    redis.call('HSET', META, 'lease_until', int(now + lease_ms))
  end
  if usage ~= '' then
    redis.call('HSET', META, 'usage', usage)
  end
  return answer
end

if jumped then
  redis.call('HSET', META, 'jumped', jumped, 'base', int(base))
end
local first_text, published, t, new_t = m[7], {}, nil, int(math.max(now, not_before))
for i = skip, count - 1 do
  local n, kind, data = int(first + i), ARGV[HEAD + 3 * i + 1], ARGV[HEAD + 3 * i + 2]
  t = ARGV[HEAD + 3 * i + 3]
  t = t == '' and new_t or t
  redis.call('XADD', LOG, n .. '-0', 'k', kind, 'd', data, 't', t)
  published[#published + 1] = n .. '\n' .. t .. '\n' .. kind .. '\n' .. data
  if kind == 'text_delta' then
    if not first_text then
      first_text = t
      redis.call('HSET', META, 'first_text', first_text)
    end
  elseif kind == 'restart' and first + i > base then
    -- The writer itself starts again (its provider failed). A takeover's restart was counted by its claim.
    redis.call('HINCRBY', META, 'attempt', 1)
  elseif kind == 'internal.turn' or (kind == 'internal.tool_result' and string.sub(data, 1, 7) == '{"key":') then
    -- A result without its call's key in front is a provider's, of a turn that may still break off.
    local known = redis.call('HMGET', META, 'agent', 'attempt')
    if known[1] then
      redis.call('HSET', META, 'kept', known[2])
    end
  end
end
local before, tail = count - skip > 1 and first + count - 2 or tail, first + count - 1
if is_ending then
  state = ARGV[#ARGV - 2]
  finish(state, ARGV[#ARGV - 1], t, before, retention_ms)
  redis.call('HSET', META, 'tail', int(tail), 'events', events, 'bytes', bytes)
else
  redis.call('HSET', META, 'tail', int(tail), 'events', events, 'bytes', bytes, 'lease_until', int(now + lease_ms))
  if usage ~= '' then
    redis.call('HSET', META, 'usage', usage)
  end
end
redis.call('PUBLISH', LIVE, table.concat(published, '\n'))
return { 'OK', tail, now, is_ending and state or 'running', there_t, events, bytes }
