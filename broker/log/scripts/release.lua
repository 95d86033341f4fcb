-- release(epoch, claim, ['1' if its attempt did not begin]) → OK
--
-- Release the pen (a worker that hands over): the next claim need not wait for the lease. A late renewal of this pen
-- finds another claim id and does not bring the lease back. The epoch stays: a claim that came after this pen, and that
-- Redis has lost, must still be newer. Who only took the pen to say that the attempt before is void, and runs nothing,
-- gives the attempt's number back with it: the next claim has it.
local m = redis.call('HMGET', META, 'state', 'epoch', 'claim', 'attempt')
if not m[1] then
  return { 'NOT_FOUND' }
end
if TERMINAL[m[1]] then
  return { 'CLOSED' }
end
if ARGV[1] ~= m[2] or ARGV[2] ~= m[3] then
  return { 'SUPERSEDED' }
end
redis.call('HSET', META, 'claim', '', 'lease_until', '0')
if ARGV[3] == '1' then
  redis.call('HSET', META, 'attempt', int(tonumber(m[4]) - 1))
end
return { 'OK' }
