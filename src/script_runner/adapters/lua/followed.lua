-- Note that enough replicas know how these tasks ended. ARGV: ids.

need_no_room()
for _, id in ipairs(ARGV) do
  if redis.call('EXISTS', key('task', id)) == 1 then
    redis.call('HSET', key('task', id), 'followed', 1)
  end
end
