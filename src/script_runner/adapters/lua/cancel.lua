-- Cancel a task: at once while it is queued, by telling its worker while it runs. ARGV: id.
-- Returns the task as it is told, and 1 if it has ended by that.

local id = ARGV[1]
local task = read(id, 'state', 'worker')

if is_newer(id) then
  return {told(id), 0}
end
local has_ended = 0
if task[1] == 'queued' then
  dequeue(id)
  finish(id, listed(id), 'cancelled', '{"state":"cancelled","error":"The task was cancelled before it started."}')
  has_ended = 1
elseif task[1] == 'running' then
  need_no_room()
  redis.call('HSET', key('task', id), 'cancelling', 1)
  redis.call('LPUSH', key('stop', task[2]), id)
  redis.call('LTRIM', key('stop', task[2]), 0, 0) -- one wake-up tells of them all
  redis.call('EXPIRE', key('stop', task[2]), 3600)
end
return {told(id), has_ended}
