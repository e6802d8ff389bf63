-- Queue a task once, however often it is asked. ARGV: id, owner, then the fields of the record.
-- Returns the time it was created.

local id, owner = ARGV[1], ARGV[2]
local task = key('task', id)

if redis.call('EXISTS', task) == 0 then
  local sequence = redis.call('INCR', key('sequence'))
  redis.call('HSET', task, 'id', id, 'owner', owner, 'state', 'queued', 'attempt', 0,
    'sequence', sequence, 'created', text(milliseconds()), unpack(ARGV, 3))
  redis.call('ZADD', key('owner', owner), sequence, id)
  enqueue(id, sequence)
end
return redis.call('HGET', task, 'created')
