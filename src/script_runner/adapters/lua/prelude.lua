-- What every script begins with: the clock, the names of the keys, and the moves of one task.
-- KEYS[1] is the prefix of all keys; times are milliseconds by the clock of the server.

local prefix = KEYS[1]

local function key(kind, name)
  return name and prefix .. kind .. ':' .. name or prefix .. kind
end

local function milliseconds()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

local function text(number)
  return string.format('%.0f', number)
end

-- Workers that wait are woken by a token each; more than these are of no use.
local function wake()
  if redis.call('LLEN', key('wake')) < 128 then
    redis.call('LPUSH', key('wake'), 1)
  end
end

-- Tokens speak of waiting tasks: none without a task, at least one with.
local function mend_tokens()
  if redis.call('EXISTS', key('queue')) == 0 then
    redis.call('DEL', key('wake'))
  elseif redis.call('EXISTS', key('wake')) == 0 then
    wake()
  end
end

local function enqueue(id, sequence)
  redis.call('ZADD', key('queue'), sequence, id)
  wake()
end

-- The fence: whether this run (worker and attempt) holds the task now.
local function is_held(id, worker, attempt)
  local held = redis.call('HMGET', key('task', id), 'state', 'worker', 'attempt')
  return held[1] == 'running' and held[2] == worker and held[3] == attempt
end

local function let_go(id, worker)
  redis.call('SREM', key('held', worker), id)
  redis.call('DEL', key('log', id))
end

-- The one way into a final state.
local function finish(id, state, outcome)
  local now = milliseconds()
  local retention = tonumber(redis.call('HGET', key('task', id), 'retention'))
  redis.call('HSET', key('task', id), 'state', state, 'outcome', outcome, 'finished', text(now))
  redis.call('ZADD', key('finished'), text(now + retention), id)
end

-- The way of a task whose run was given up: back in the queue, or final when it may not run again.
local function give_up(id)
  local task = redis.call('HMGET', key('task', id), 'worker', 'attempt', 'max_attempts', 'cancelling', 'sequence')
  let_go(id, task[1])
  if task[4] then
    finish(id, 'cancelled', '{"state":"cancelled","error":"The task was cancelled."}')
  elseif tonumber(task[2]) < tonumber(task[3]) then
    redis.call('HSET', key('task', id), 'state', 'queued')
    redis.call('HDEL', key('task', id), 'worker', 'started')
    enqueue(id, task[5])
  else
    local error = 'The worker was lost while the script ran (attempt ' .. task[2] .. ' of ' .. task[3] .. ').'
    finish(id, 'lost', cjson.encode({state = 'lost', error = error}))
  end
end
