-- seize(claim id, kind, data, lease ms, retention ms, '1' only if the lease has expired, seen server, seen since ms,
--       channel of seizures, [id, epoch, t of a seizure that is put back, or '0' thrice])
--   → OK, state, id of the ending, id of the last event before it, 1 if it had already ended, epoch, t, data as written
--     (or '', if something else had ended it)
--
-- Take the pen and write the ending in one step. So a cancel works from any server, at once, whether or not a worker
-- has started, lives or is dead. The worker finds itself fenced. The same seizure again (its reply was lost) is
-- answered like the first.
-- The writer cannot say any more what its provider has counted: what it kept in meta becomes part of the ending.
-- The process that seized keeps the ending for a lease and puts it back if Redis lost it: with the data as it was
-- written, and under the id it had, unless the stream has advanced beyond that id. This is healing: it waits neither
-- for a writer's lease nor for a new server's first lease.

-- The data of an ending with the members of `usage` behind its own. Both are JSON objects on one line.
local function with_usage(data, usage)
  local members = string.match(usage, '^{(.+)}$')
  if not members or string.find(data, '"usage":', 1, true) then
    return data
  end
  return string.sub(data, 1, -2) .. (data == '{}' and '' or ',') .. members .. '}'
end

local claim, kind, data, lease_ms, retention_ms = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4]), ARGV[5]
local lost_id, lost_epoch, lost_t = tonumber(ARGV[10]), tonumber(ARGV[11]), ARGV[12]
local m = redis.call('HMGET', META, 'state', 'claim', 'tail', 'stopped_after', 'lease_until', 'created', 'boot',
  'epoch', 'finished', 'base', 'usage', 'ending', 'counted_from')
local state, tail, epoch = m[1], tonumber(m[3]), tonumber(m[8])
if not state then
  return { 'NOT_FOUND' }
end
if TERMINAL[state] then
  -- A tombstone has no epoch, no event before its ending, and no ending.
  local is_ours = m[2] == claim
  return { 'OK', state, tail, tonumber(m[4]) or tail, is_ours and 0 or 1, epoch or 0, tonumber(m[9]),
    is_ours and m[12] or '' }
end

local id, t = next_block(tail, tonumber(m[10]), tonumber(m[13] or m[6])), int(now)
if lost_id > 0 then
  epoch, t = math.max(epoch, lost_epoch - 1), lost_t
  if lost_id > tail then
    id = lost_id
  end
else
  if ARGV[6] == '1' and m[5] and tonumber(m[5]) > now then
    return { 'HELD', tonumber(m[5]) }
  end
  local wait = healing(m[7], ARGV[7], tonumber(ARGV[8]), lease_ms)
  if wait then
    return wait
  end
  data = with_usage(data, m[11] or '')
end
add(id, kind, data, t)
redis.call('HINCRBY', META, 'events', 1)
redis.call('HSET', META, 'epoch', int(epoch + 1), 'claim', claim, 'base', int(id), 'tail', int(id))
finish(kind, data, t, tail, retention_ms)
publish()
-- A hint for the worker that held the pen. Its provider may be silent: it hangs up now, without waiting to be fenced.
redis.call('PUBLISH', ARGV[9], string.match(META, '{(.-)}'))
return { 'OK', kind, id, tail, 0, epoch + 1, tonumber(t), data }
