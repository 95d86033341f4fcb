-- inputs(what, data, approval id or '', channel, most waiting, most bytes waiting)
--   → OK, id of the entry, its data
--
-- Add to what the agent of this stream is told while it runs: `input` and `approval` (a decision) by servers, `ask` by
-- the worker. Its worker takes an input away once the log has it, so what is counted here waits.
-- An approval is asked for once and decided once: repeating either gives the entry that stands, also where two decide
-- at the same moment. An input is added by each call.
local what, data, approval, channel = ARGV[1], ARGV[2], ARGV[3], ARGV[4]

local state = redis.call('HGET', META, 'state')
if not state then
  return { 'NOT_FOUND' }
end
if TERMINAL[state] then
  return { 'CLOSED' }
end

local waiting, bytes, there = 0, 0, {}
for _, entry in ipairs(redis.call('XRANGE', INPUTS, '-', '+')) do
  local fields = entry[2] -- k, d and, of an approval, a
  if fields[2] == 'input' then
    waiting, bytes = waiting + 1, bytes + #fields[4]
  elseif fields[6] == approval then
    there[fields[2]] = { 'OK', entry[1], fields[4] }
  end
end
if there[what] then
  return there[what]
end
if what == 'approval' and not there.ask then
  return { 'NOT_ASKED' }
end
if what == 'input' and (waiting >= tonumber(ARGV[5]) or bytes + #data > tonumber(ARGV[6])) then
  return { 'FULL' }
end

-- The notification first: Redis may refuse it, and a refused script keeps what it wrote before. Nobody can look before
-- this script has ended.
redis.call('PUBLISH', channel, string.match(META, '{(.-)}'))
if approval == '' then
  return { 'OK', redis.call('XADD', INPUTS, '*', 'k', what, 'd', data), data }
end
return { 'OK', redis.call('XADD', INPUTS, '*', 'k', what, 'd', data, 'a', approval), data }
