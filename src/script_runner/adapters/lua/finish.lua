-- Record the outcome of a run, if it still holds the task. ARGV: id, worker, attempt, state, outcome.
-- Returns 1 when the outcome stands, also when this very call had done it before.

local id, worker, attempt, state, outcome = unpack(ARGV)

if is_held(id, worker, attempt) then
  let_go(id, worker)
  finish(id, state, outcome)
  return 1
end
local stands = redis.call('HMGET', key('task', id), 'state', 'worker', 'attempt')
return stands[1] == state and stands[2] == worker and stands[3] == attempt and 1 or 0
