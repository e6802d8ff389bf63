-- Give a held task back. ARGV: id, worker, run, whether the attempt counts (1 or 0).
-- Returns 1 when it was held.

local id, worker, run, counted = unpack(ARGV)

if not held_by(id, worker, run) then
  return 0
end
need_no_room()
if counted == '0' then
  redis.call('HINCRBY', key('task', id), 'attempt', -1)
end
give_up(id)
return 1
