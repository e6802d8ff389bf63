-- Ids of finished tasks past their retention, by age or by count. ARGV: how many, then states and the most of each.

local wanted = tonumber(ARGV[1])
local ids = redis.call('ZRANGEBYSCORE', key('finished'), '-inf', text(milliseconds()), 'LIMIT', 0, wanted)

for index = 2, #ARGV, 2 do
  local list = key(ARGV[index])
  local over = math.min(redis.call('ZCARD', list) - tonumber(ARGV[index + 1]), wanted)
  for _, id in ipairs(over > 0 and redis.call('ZRANGE', list, 0, over - 1) or {}) do
    table.insert(ids, id)
  end
end
local ours = {}
for _, id in ipairs(ids) do
  if not is_newer(id) then
    table.insert(ours, id)
  end
end
return ours
