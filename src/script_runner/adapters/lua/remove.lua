-- Forget a task that is not running. ARGV: id. Returns 0 while it runs, or when only a newer version understands it.

local id = ARGV[1]
local task = read(id, 'state', 'owner', 'once')

if task[1] == 'running' or is_newer(id) then
  return 0
end
if task[1] then
  dequeue(id)
  for _, list in ipairs({key(task[1]), key(task[1], task[2]), key('owner', task[2]), key('finished')}) do
    redis.call('ZREM', list, id)
  end
  if task[3] then
    redis.call('DEL', key('once', task[3]))
  end
  admit(task[2])
  mend_tokens()
end
redis.call('DEL', key('task', id), key('log', id))
if task[1] then
  tell(id, 'removed')
end
return 1
