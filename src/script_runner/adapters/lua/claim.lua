-- Give queued tasks to a worker with a valid lease. ARGV: worker, number of the claim, how many, the most that
-- may run, the most of one owner that may run (empty: no limit).
-- A claim whose answer was lost is repeated under its number and gets the same tasks; an older number gets none.
-- Returns the records, then the ids of those that only a newer version understands, and of those that have waited
-- too long and were ended; then 1 if more may start.

local worker, number, wanted = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local newer = {}

local function note_limits()
  local known = redis.call('HMGET', key('limits'), 'running', 'running_per_caller')
  if known[1] ~= ARGV[4] or known[2] ~= ARGV[5] then
    redis.call('HSET', key('limits'), 'running', ARGV[4], 'running_per_caller', ARGV[5])
  end
  known_limits = {running = tonumber(ARGV[4]), running_per_caller = tonumber(ARGV[5])}
end

local function again(ids)
  local held = {}
  for id in string.gmatch(ids, '%S+') do
    if redis.call('SISMEMBER', key('held', worker), id) == 1 then
      table.insert(held, id)
    end
  end
  return held
end

-- Let go what older workers have put aside for those who understand it.
local function take_back()
  for known = 2, FORMAT do
    local waiting = redis.call('ZRANGE', key('newer', known), 0, MOST_AT_ONCE - 1, 'WITHSCORES')
    for index = 1, #waiting, 2 do
      redis.call('ZADD', key('queue'), waiting[index + 1], waiting[index])
      redis.call('ZREM', key('newer', known), waiting[index])
    end
  end
end

local function start(id, task, rank, now)
  local attempt, run, priority = text(task[6] + 1), text(task[7] + 1), task[8]
  if task[5] then
    redis.call('ZREM', key('expiring'), id)
  end
  enter(id, task, 'running', 'worker', worker, 'started', text(now), 'attempt', attempt, 'run', run)
  redis.call('SADD', key('held', worker), id)
  local turn = rank % TURNS
  if turn > tonumber(redis.call('HGET', key('turn'), priority) or 0) then
    redis.call('HSET', key('turn'), priority, text(turn))
    redis.call('ZREMRANGEBYSCORE', key('turns', priority), '-inf', '(' .. text(turn))
  end
end

-- Start one task, or put it where it does not stand in the way.
local function take(waiting, rank, now)
  local id = member_id(waiting)
  local task = read(id, 'state', 'owner', 'sequence', 'format', 'expires', 'attempt', 'run', 'priority')
  if is_format_newer(task[4]) then
    redis.call('ZADD', key('newer', task[4]), rank, waiting)
    table.insert(newer, id)
  elseif task[5] and tonumber(task[5]) <= now then
    expire(id)
  elseif room('running_per_caller', 'running', task[2]) <= 0 then
    redis.call('ZADD', key('backlog', task[2]), rank, waiting)
    redis.call('SADD', key('backlogs'), task[2])
  else
    start(id, task, tonumber(rank), now)
    return id
  end
end

local function take_first(now)
  local ids = {}
  local count = math.min(wanted, room('running', 'running'))
  for _ = 1, count + MOST_AT_ONCE do
    local first = #ids < count and redis.call('ZPOPMIN', key('queue')) or {}
    if not first[1] then
      break
    end
    ids[#ids + 1] = take(first[1], first[2], now)
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
  note_limits()
  local last = redis.call('HMGET', key('worker', worker), 'claim', 'claimed')
  local last_number = tonumber(last[1] or 0)
  if number == last_number then
    return again(last[2])
  end
  if number < last_number or is_quiet() then
    return {}
  end
  take_back()
  tick()
  return take_first(now)
end

local records = {}
for index, id in ipairs(claim()) do
  records[index] = redis.call('HGETALL', key('task', id))
end
local may_more = mend_tokens() -- also when none was given: the token that led here may be another worker's
return {records, newer, expired, may_more and 1 or 0}
