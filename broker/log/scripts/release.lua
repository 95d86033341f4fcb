-- release(epoch, claim) → OK
--
-- Release the pen (a worker that hands over): the next claim need not wait for the lease. A late renewal of this pen
-- finds another claim id and does not bring the lease back. The epoch stays: a claim that came after this pen, and that
-- Redis has lost, must still be newer.
local m = redis.call('HMGET', META, 'state', 'epoch', 'claim')
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
return { 'OK' }
