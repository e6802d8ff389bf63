-- Give a held task back. ARGV: id, worker, attempt, whether the attempt counts (1 or 0).
-- Returns 1 when it was held.

local id, worker, attempt, counted = unpack(ARGV)

if not is_held(id, worker, attempt) then
  return 0
end
if counted == '0' then
  redis.call('HINCRBY', key('task', id), 'attempt', -1)
end
give_up(id)
return 1
