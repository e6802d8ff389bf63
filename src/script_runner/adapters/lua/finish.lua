-- Record the outcome of a run, if it still holds the task. ARGV: id, worker, run, state, outcome, exit code.
-- Returns 1 when the outcome stands, also when this very call had done it before.

local id, worker, run, state, outcome, exit_code = unpack(ARGV)

local task = held_by(id, worker, run)
if task then
  let_go(id, worker)
  finish(id, task, state, outcome, exit_code)
  return 1
end
local stands = read(id, 'state', 'worker', 'run')
return stands[1] == state and stands[2] == worker and stands[3] == run and 1 or 0
