-- Add to the tail of what a script says, if this run of it holds the task. ARGV: id, worker, run, stream, offset, bytes,
-- how many to keep.

local id, worker, run, stream, _, bytes = unpack(ARGV)
local offset, keep = tonumber(ARGV[5]), tonumber(ARGV[7])
local log = key('log', id)

if not held_by(id, worker, run) then
  return
end
local start = tonumber(redis.call('HGET', log, stream .. ':start') or offset)
local tail = redis.call('HGET', log, stream) or ''
local expected = start + #tail
if offset > expected then
  start, tail = offset, bytes
else
  tail = tail .. string.sub(bytes, expected - offset + 1)
end
if #tail > keep then
  start = start + #tail - keep
  tail = string.sub(tail, -keep)
end
redis.call('HSET', log, stream, tail, stream .. ':start', text(start))
publish(key('changes', id), stream)
