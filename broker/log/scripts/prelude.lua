-- What every step shares. script.py puts this file in front of each script, and functions.lua behind it.
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

-- The id of the log's last event, and how many it has. `tail` and `events`: what meta says, which is so as long as the
-- log has no more: extend.lua adds to the log alone. A tombstone has no log.
local function log_end(tail, events)
  local length = redis.call('XLEN', LOG)
  if length > 0 and length ~= events then
    local last = redis.call('XREVRANGE', LOG, '+', '-', 'COUNT', 1)
    tail = tonumber(string.match(last[1][1], '^%d+'))
  end
  return tail, length
end

-- Made in functions.lua. A step that is called for each event makes them only when it needs one: eight closures are a
-- seventh of an append.
local next_block, server, healing, hold, add, publish, finish
