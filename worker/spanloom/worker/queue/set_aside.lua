-- Moves jobs of node types that a worker lacks from their list to the side lists of these types.
-- KEYS: the list; the set of its started jobs; RQ's set of lists; then the side list of each type.
-- ARGV: what the keys of jobs begin with; the worker; how many jobs of the list to look through; the most bytes of an id
-- and of data; what the keys of lists begin with; the types, one for each side list; then pairs of the number of a type and a job that the worker fetched.
-- Returns how many it moved of those that still waited.
local types = #KEYS - 3
local numbers = {}
for number = 1, types do numbers[ARGV[6 + number]] = number end
local function append(number, id)
  redis.call('SADD', KEYS[3], KEYS[3 + number])
  redis.call('RPUSH', KEYS[3 + number], id)
  redis.call('HSET', ARGV[1] .. id, 'origin', string.sub(KEYS[3 + number], #ARGV[6] + 1))
end
for place = 7 + types, #ARGV, 2 do
  local id = ARGV[place + 1]
  redis.pcall('ZREM', KEYS[2], id .. ':' .. ARGV[2])
  redis.call('PERSIST', ARGV[1] .. id)  -- first: a Redis that is out of memory lets a script go on that has written
  append(tonumber(ARGV[place]), id)
  redis.call('HSET', ARGV[1] .. id, 'status', 'queued')
end
local function number_of(id)
  if #id > tonumber(ARGV[4]) then return nil end
  local data = redis.pcall('HGET', ARGV[1] .. id, 'data')
  if type(data) ~= 'string' or #data > tonumber(ARGV[5]) then return nil end
  local read, call = pcall(cjson.decode, data)
  if read and type(call) == 'table' and type(call[3]) == 'table' and type(call[3][1]) == 'table' then
    return numbers[call[3][1].type]
  end
end
local waiting = redis.pcall('LRANGE', KEYS[1], 0, tonumber(ARGV[3]) - 1)
if waiting.err then return 0 end  -- of another type
local others, moved = {}, 0
for _, id in ipairs(waiting) do
  local number = number_of(id)
  if number then
    append(number, id)
    moved = moved + 1
  else
    others[#others + 1] = id
  end
end
if moved > 0 then
  redis.call('LTRIM', KEYS[1], #waiting, -1)
  for place = #others, 1, -1 do redis.call('LPUSH', KEYS[1], others[place]) end
end
return moved
