-- archived(archived ms, retention ms) → OK
--
-- The archive holds this stream or, if it was erased, its tombstone: from here on its keys have a life. With an
-- archive, no other step gives them one (G7). Repeating it is harmless.
-- A stream that is not terminal here (Redis lost its ending, which is about to be put back) stays as it is. The
-- archiver looks at it again.
local state = redis.call('HGET', META, 'state')
if not state then
  return { 'NOT_FOUND' }
end
if not TERMINAL[state] then
  return { 'HELD', now }
end
redis.call('HSETNX', META, 'archived', ARGV[1])
redis.call('PEXPIRE', META, ARGV[2])
redis.call('PEXPIRE', LOG, ARGV[2])
redis.call('PEXPIRE', INPUTS, ARGV[2])
redis.call('PEXPIRE', PRODUCERS, ARGV[2])
return { 'OK' }
