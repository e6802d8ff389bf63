-- Where tasks and what they say have come to, in brief, for those who may have missed a word. ARGV: ids.
-- Returns for each: its state ("removed" if there is none), number of the run, and the ends of its log's streams.

local versions = {}
for index, id in ipairs(ARGV) do
  local task = read(id, 'state', 'run')
  local starts = redis.call('HMGET', key('log', id), 'stdout:start', 'stderr:start')
  versions[index] = {
    task[1] or 'removed',
    task[2] or '0',
    text((starts[1] or 0) + redis.call('HSTRLEN', key('log', id), 'stdout')),
    text((starts[2] or 0) + redis.call('HSTRLEN', key('log', id), 'stderr')),
  }
end
return versions
