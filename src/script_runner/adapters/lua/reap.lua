-- Settle what workers without a valid lease held. Returns the ids.
-- After a time in which nobody looked (the server was away, or its clock jumped) it waits one lease,
-- so that living workers can renew first.

local now = milliseconds()
local reaper = redis.call('HMGET', key('reaper'), 'looked', 'quiet_until', 'lease')
local looked, quiet_until = tonumber(reaper[1] or 0), tonumber(reaper[2] or 0)
local lease = tonumber(reaper[3] or 10000)
redis.call('HSET', key('reaper'), 'looked', text(now))

if now < looked then
  -- the clock went back: no lease may reach further than one length from now
  for _, worker in ipairs(redis.call('ZRANGEBYSCORE', key('workers'), text(now + lease), '+inf')) do
    redis.call('ZADD', key('workers'), text(now + lease), worker)
  end
end
if now < looked or now - looked > math.max(lease / 2, 500) then
  quiet_until = now + lease
  redis.call('HSET', key('reaper'), 'quiet_until', text(quiet_until))
end

local settled = {}
-- a worker that left by itself (0) need not be waited for
local dead_by = (now < quiet_until and quiet_until <= now + lease) and '0' or text(now)
for _, worker in ipairs(redis.call('ZRANGEBYSCORE', key('workers'), '-inf', dead_by)) do
  for _, id in ipairs(redis.call('SMEMBERS', key('held', worker))) do
    give_up(id)
    table.insert(settled, id)
  end
  redis.call('DEL', key('held', worker), key('worker', worker), key('stop', worker))
  redis.call('ZREM', key('workers'), worker)
end
return settled
