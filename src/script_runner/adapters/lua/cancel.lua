-- Cancel a task: at once while it is queued, by telling its worker while it runs. ARGV: id.
-- Returns the record, empty if there is none.

local id = ARGV[1]
local task = redis.call('HMGET', key('task', id), 'state', 'worker')

if task[1] == 'queued' then
  redis.call('ZREM', key('queue'), id)
  finish(id, 'cancelled', '{"state":"cancelled","error":"The task was cancelled before it started."}')
elseif task[1] == 'running' then
  redis.call('HSET', key('task', id), 'cancelling', 1)
  redis.call('LPUSH', key('stop', task[2]), id)
  redis.call('LTRIM', key('stop', task[2]), 0, 0) -- one wake-up tells of them all
  redis.call('EXPIRE', key('stop', task[2]), 3600)
end
return redis.call('HGETALL', key('task', id))
