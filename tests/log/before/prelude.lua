-- What every step shares. script.py puts this file in front of each script.
--
-- KEYS: the stream's log, its meta, its live channel, its inputs; for some steps its request, who holds that, its
-- webhook and its producers (one slot). A step answers {'OK', …} or {'<WHY NOT>', …}.
-- Redis TIME is the only clock. Event JSON is never decoded here (fakeredis' cjson turns {} into []).
local LOG, META, LIVE, INPUTS = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local REQUEST, HOLDERS, PRODUCERS = KEYS[5], KEYS[6], KEYS[8]
local BLOCK = 1000000
local TERMINAL = { done = true, error = true, cancelled = true }

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

-- Lua prints large numbers as 1e+15, but ids must stay digits.
local function int(n)
  return string.format('%d', n)
end

-- The pen has changed hands: continue at the start of a block of a million ids that no writer can have used, not even
-- one whose events Redis has lost since. No writer advances by more than one block for each second of a stream's life.
-- The base of a pen counts as used: its writer may be about to write there, and a claim does not move the tail.
-- `created`: from when on its seconds count (meta's `counted_from`, if it has one).
local function next_block(tail, base, created)
  local behind_tail = math.floor((math.max(tail, base) - 1) / BLOCK) + 1
  local behind_time = 1 + math.floor((now - created) / 1000)
  return BLOCK * math.max(behind_tail, behind_time) + 1
end

-- The server that runs this script. The value changes with each restart (run_id) and with each promotion of a replica
-- (its replication id), so whenever the end of a log may have been lost. fakeredis has no INFO: there it never changes.
local function server()
  local info = redis.pcall('INFO', 'server', 'replication')
  if type(info) ~= 'string' then
    return ''
  end
  local run_id, history = string.match(info, 'run_id:(%w+)'), string.match(info, 'master_replid:(%w+)')
  return string.sub(run_id or '', 1, 16) .. string.sub(history or '', 1, 16)
end

-- The boot rule. On another server than the one that created the stream, live writers put back lost events before any
-- pen may be taken: no stream is claimed or seized until the server has been in use for one lease. The caller says
-- when that server was first seen (servers.py keeps it). nil: the step may proceed.
local function healing(created_by, seen_server, seen_at, lease_ms)
  local this = server()
  if this == created_by then
    return nil
  end
  if this ~= seen_server then
    return { 'NEW_SERVER', this }
  end
  local wait_ms = seen_at + lease_ms - now
  return wait_ms > 0 and { 'HEALING', wait_ms } or nil
end

-- The request lives as long as the last of its holders needs it.
local function live_as_long_as_held()
  redis.call('ZREMRANGEBYSCORE', HOLDERS, '-inf', '(' .. int(now))
  local last = redis.call('ZREVRANGE', HOLDERS, 0, 0, 'WITHSCORES')[2]
  if not last then
    redis.call('DEL', REQUEST, HOLDERS)
  elseif last == 'inf' then
    redis.call('PERSIST', REQUEST)
    redis.call('PERSIST', HOLDERS)
  else
    redis.call('PEXPIREAT', REQUEST, int(tonumber(last)))
    redis.call('PEXPIREAT', HOLDERS, int(tonumber(last)))
  end
end

-- This stream needs the request from now on, for so long at least ('': until it lets go).
local function hold(sid, life_ms)
  redis.call('ZADD', HOLDERS, 'GT', life_ms == '' and 'inf' or int(now + life_ms), sid)
  live_as_long_as_held()
end

local published = {}

-- Add one event to the log and keep it for publish().
local function add(id, kind, data, t)
  local n = int(id)
  redis.call('XADD', LOG, n .. '-0', 'k', kind, 'd', data, 't', t)
  published[#published + 1] = n .. '\n' .. t .. '\n' .. kind .. '\n' .. data
end

-- Publish the batch itself, four lines an event (data is one line): a follower needs no read.
local function publish()
  redis.call('PUBLISH', LIVE, table.concat(published, '\n'))
end

-- A terminal event: the state takes its name and retention starts. What only a running stream has goes. With an archive (retention 0) retention starts
-- later, when the archive holds the stream (archived.lua).
local function finish(kind, data, t, stopped_after, retention_ms)
  redis.call('HSET', META, 'state', kind, 'finished', t, 'stopped_after', int(stopped_after), 'ending', data)
  redis.call('HDEL', META, 'lease_until', 'usage')
  if retention_ms ~= '0' then
    redis.call('PEXPIRE', META, retention_ms)
    redis.call('PEXPIRE', LOG, retention_ms)
    redis.call('PEXPIRE', INPUTS, retention_ms)
    if PRODUCERS then
      redis.call('PEXPIRE', PRODUCERS, retention_ms)
    end
  end
end
