-- Settle what workers without a valid lease held, and what the clock brings.
-- Returns the records of what it settled, those that have waited too long and were ended among them, as they are now;
-- then the ids of those that it left to a newer version.
-- After a time in which nobody looked (the server was away, or its clock jumped) it waits one lease,
-- so that living workers can renew first.

need_no_room()
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

local function settle(worker, settled, newer)
  local count = #newer
  for _, id in ipairs(redis.call('SMEMBERS', key('held', worker))) do
    if is_newer(id) then
      table.insert(newer, id)
    else
      give_up(id)
      table.insert(settled, id)
    end
  end
  if #newer == count then
    redis.call('DEL', key('held', worker), key('worker', worker), key('stop', worker))
    redis.call('ZREM', key('workers'), worker)
  end
  redis.call('HDEL', key('slots'), worker)
  redis.call('HDEL', key('loaded'), worker)
  redis.call('HDEL', key('versions'), worker)
  heard(worker)
end

local settled, newer = {}, {}
-- a worker that left by itself (0) need not be waited for
local dead_by = (now < quiet_until and quiet_until <= now + lease) and '0' or text(now)
for _, worker in ipairs(redis.call('ZRANGEBYSCORE', key('workers'), '-inf', dead_by)) do
  settle(worker, settled, newer)
end
tick()
for _, id in ipairs(expired) do
  table.insert(settled, id)
end
for _, owner in ipairs(redis.call('SRANDMEMBER', key('backlogs'), 20)) do
  admit(owner)
end
if redis.call('EXISTS', key('queue'), key('backlogs')) == 0 then
  local turns = {} -- nobody waits for one: no owner need be remembered
  for priority = -9, 9 do
    table.insert(turns, key('turns', text(priority)))
  end
  redis.call('DEL', unpack(turns))
end
mend_tokens()
local records = {}
for index, id in ipairs(settled) do
  records[index] = redis.call('HGETALL', key('task', id))
end
return {records, newer}
