-- What a worker has to know of the tasks it runs. ARGV: worker, then id and number of each run.
-- Returns the ids that are to be cancelled, the ids that it no longer holds, the records of those that it holds and
-- does not run, and the number of the last claim that got something.

local worker = ARGV[1]
local runs, cancelled, taken, left = {}, {}, {}, {}

for index = 2, #ARGV, 2 do
  local id = ARGV[index]
  runs[id] = true
  if not held_by(id, worker, ARGV[index + 1]) then
    table.insert(taken, id)
  elseif redis.call('HEXISTS', key('task', id), 'cancelling') == 1 then
    table.insert(cancelled, id)
  end
end
for _, id in ipairs(redis.call('SMEMBERS', key('held', worker))) do
  if not runs[id] then
    table.insert(left, redis.call('HGETALL', key('task', id)))
  end
end
if #taken == 0 and heard(worker) then
  mend_tokens()
end
return {cancelled, taken, left, tonumber(redis.call('HGET', key('worker', worker), 'claim') or 0)}
