-- hold(sid, held for (ms) or '', request or '') → OK, 1 if the request is there
--
-- On the slot of the request: this stream needs it, for so long at least ('': until it lets go). A request that is gone
-- is put back if the caller has it. Repeating it is harmless: a hold is never shortened here.
if redis.call('EXISTS', REQUEST) == 0 then
  if ARGV[3] == '' then
    return { 'OK', 0 }
  end
  redis.call('SET', REQUEST, ARGV[3])
end
hold(ARGV[1], ARGV[2])
return { 'OK', 1 }
