-- How much there is of everything, at a cost that does not grow with the number of tasks.
-- ARGV: milliseconds that count as lately, then the final states.
-- Returns queued (may start but for limits), scheduled, running, backlog, milliseconds that the oldest has waited,
-- workers with a valid lease, slots, the version of each worker that says it, and for each of the states how many ended so lately.

local now = milliseconds()
local LOOKED_AT = 1000

-- Since when a waiting task could have been started.
local function since(entered, id)
  return math.max(tonumber(entered), tonumber(read(id, 'not_before')[1] or 0))
end

-- Since when the task has waited that has waited longest, of those whose time has come. They are looked at in the
-- order in which they came; one without a start time ends that, since all after it came later.
local function oldest()
  local found
  for first = 0, LOOKED_AT - 1, MOST_AT_ONCE do
    local waiting = redis.call('ZRANGE', key('queued'), first, first + MOST_AT_ONCE - 1, 'WITHSCORES')
    for index = 1, #waiting, 2 do
      local id, entered = waiting[index], tonumber(waiting[index + 1])
      local start = since(entered, id)
      if start <= now then
        found = math.min(found or start, start)
        if start == entered then
          return found
        end
      end
    end
    if #waiting < 2 * MOST_AT_ONCE then
      break
    end
  end
  return found
end

-- Tasks that may start now and those that run: what workers are needed for.
local function backlog(running)
  local most = limits().running
  local all = running + redis.call('ZCARD', key('queue')) + redis.call('ZCOUNT', key('scheduled'), '-inf', text(now))
  return most and math.max(running, math.min(most, all)) or all
end

local slots = 0
for _, count in ipairs(redis.call('HVALS', key('slots'))) do
  slots = slots + tonumber(count)
end
local scheduled = redis.call('ZCOUNT', key('scheduled'), '(' .. text(now), '+inf')
local running = redis.call('ZCARD', key('running'))
local figures = {
  redis.call('ZCARD', key('queued')) - scheduled, scheduled, running, backlog(running), now - (oldest() or now),
  redis.call('ZCOUNT', key('workers'), '(' .. text(now), '+inf'), slots, redis.call('HVALS', key('versions')),
}
for index = 2, #ARGV do
  table.insert(figures, redis.call('ZCOUNT', key(ARGV[index]), text(now - tonumber(ARGV[1])), '+inf'))
end
return figures
