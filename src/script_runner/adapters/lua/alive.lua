-- The configurations that workers with a valid lease have loaded, one entry a worker.

local loaded = {}
for _, worker in ipairs(redis.call('ZRANGEBYSCORE', key('workers'), '(' .. text(milliseconds()), '+inf')) do
  table.insert(loaded, redis.call('HGET', key('loaded'), worker) or '')
end
return loaded
