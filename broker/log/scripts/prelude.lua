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

-- Where the log ends: the id of its last event, how many it has and, if `bytes` is given, the size of all their data.
-- `tail`, `events`, `bytes`: what meta says. Together that was so once, and it still is if the log has no more events:
-- extend.lua adds to the log alone. A tombstone has no log.
local function log_end(tail, events, bytes)
  local length = redis.call('XLEN', LOG)
  if length <= (events or 0) then
    return tail, length, bytes
  end
  if bytes then
    for _, entry in ipairs(redis.call('XRANGE', LOG, int(tail + 1), '+')) do
      bytes = bytes + #entry[2][4]
    end
  end
  local last = redis.call('XREVRANGE', LOG, '+', '-', 'COUNT', 1)[1][1]
  return tonumber(string.match(last, '^%d+')), length, bytes
end

-- Made in functions.lua. A step that is called for each event makes them only when it needs one: eight closures are a
-- seventh of an append.
local next_block, server, healing, hold, add, publish, finish
