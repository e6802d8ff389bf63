-- Give queued tasks to a worker with a valid lease. ARGV: worker, number of the claim, limit.
-- A claim whose answer was lost is repeated under its number and gets the same tasks; an older number gets none.
-- Returns the records.

local worker, number, limit = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])

local function again(ids)
  local held = {}
  for id in string.gmatch(ids, '%S+') do
    if redis.call('SISMEMBER', key('held', worker), id) == 1 then
      table.insert(held, id)
    end
  end
  return held
end

local function start(now)
  local ids = redis.call('ZRANGEBYSCORE', key('queue'), '-inf', '+inf', 'LIMIT', 0, limit)
  for _, id in ipairs(ids) do
    local task = key('task', id)
    redis.call('ZREM', key('queue'), id)
    redis.call('HSET', task, 'state', 'running', 'worker', worker, 'started', text(now))
    redis.call('HINCRBY', task, 'attempt', 1)
    redis.call('SADD', key('held', worker), id)
  end
  if #ids > 0 then
    redis.call('HSET', key('worker', worker), 'claim', number, 'claimed', table.concat(ids, ' '))
  end
  return ids
end

local function claim()
  local now = milliseconds()
  if tonumber(redis.call('ZSCORE', key('workers'), worker) or 0) <= now then
    return {}
  end
  local last = redis.call('HMGET', key('worker', worker), 'claim', 'claimed')
  local last_number = tonumber(last[1] or 0)
  if number < last_number then
    return {}
  end
  return number == last_number and again(last[2]) or start(now)
end

local records = {}
for index, id in ipairs(claim()) do
  records[index] = redis.call('HGETALL', key('task', id))
end
mend_tokens() -- also when none was given: the token that led here may be another worker's
return records
