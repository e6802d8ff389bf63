-- Give a held task back. ARGV: id, worker, run, whether the attempt counts (1 or 0).
-- Returns the state that it has come into by that; 0 when it was not held.

local id, worker, run, counted = unpack(ARGV)

if not held_by(id, worker, run) then
  return 0
end
need_no_room()
if counted == '0' then
  redis.call('HINCRBY', key('task', id), 'attempt', -1)
end
return give_up(id)
