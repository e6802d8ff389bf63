-- Forget a task that is not running. ARGV: id. Returns 0 while it runs.

local id = ARGV[1]
local task = redis.call('HMGET', key('task', id), 'state', 'owner')

if task[1] == 'running' then
  return 0
end
redis.call('DEL', key('task', id), key('log', id))
redis.call('ZREM', key('queue'), id)
mend_tokens()
redis.call('ZREM', key('finished'), id)
if task[2] then
  redis.call('ZREM', key('owner', task[2]), id)
end
return 1
