-- The ids of the tasks a worker holds that were asked to stop. ARGV: worker.

local found = {}
for _, id in ipairs(redis.call('SMEMBERS', key('held', ARGV[1]))) do
  if redis.call('HEXISTS', key('task', id), 'cancelling') == 1 then
    table.insert(found, id)
  end
end
return found
