-- Add to the tail of what a running script says. ARGV: id, stream, offset, bytes, how many to keep.

local id, stream, offset, bytes, keep = ARGV[1], ARGV[2], tonumber(ARGV[3]), ARGV[4], tonumber(ARGV[5])
local log = key('log', id)

if redis.call('HGET', key('task', id), 'state') ~= 'running' then
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
