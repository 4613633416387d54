-- KEYS: the lists, most urgent first; for each of them the set of its started jobs.
-- Pops up to ARGV[1] jobs, marks them started and lists them as RQ does. ARGV[5] and ARGV[6] are the number of a list
-- and a job that a blocking pop took from it. A started job expires ARGV[7] seconds after its worker renewed it last;
-- one that waits never does. Returns the number of its list, its id and its data for each job. The keys of the jobs'
-- hashes can't be among KEYS: which jobs they are is known once they are popped. ARGV[8] is what these keys begin with;
-- a hash tag in RQ's prefix keeps them in the slot of the lists. ARGV[9] and ARGV[10]: the most bytes of an id and of
-- data. In place of data there is the number of its bytes if they are more (the job is deleted), -1 if the id is too long,
-- and -2 if what has the job's key is no job. A last {0} means that one of KEYS is of another type. Any other error is
-- returned, unless jobs were fetched before it; then the next call returns it.
local lists = #KEYS / 2
local fetched = {}
local damaged = false
local failure = nil
local function is_wrong(answer)
  return string.find(answer.err, 'WRONGTYPE', 1, true)
end
-- Starts jobs of a list, as far as they are some, and returns how many were taken, all unless something fails.
local function start(number, ids)
  local listed = {}
  local taken = 0
  for _, id in ipairs(ids) do
    local key = ARGV[8] .. id
    local data = #id > tonumber(ARGV[9]) and -1 or redis.pcall('HGET', key, 'data')
    if type(data) == 'table' and not is_wrong(data) then
      failure = data
      break
    end
    taken = taken + 1
    if data == -1 then
      fetched[#fetched + 1] = {number, string.sub(id, 1, 200), -1}
    elseif not data then
      redis.call('DEL', key)
    elseif type(data) == 'table' then
      fetched[#fetched + 1] = {number, id, -2}
    elseif #data > tonumber(ARGV[10]) then
      redis.call('DEL', key)
      fetched[#fetched + 1] = {number, id, #data}
    else
      redis.call('EXPIRE', key, ARGV[7])  -- first: a Redis that is out of memory lets a script go on that has written
      redis.call('HSET', key, 'status', 'started', 'started_at', ARGV[3], 'worker_name', ARGV[2])
      listed[#listed + 1] = ARGV[4]
      listed[#listed + 1] = id .. ':' .. ARGV[2]
      fetched[#fetched + 1] = {number, id, data}
    end
  end
  if #listed > 0 then
    local added = redis.pcall('ZADD', KEYS[lists + number], unpack(listed))
    damaged = damaged or (type(added) == 'table' and is_wrong(added))
  end
  return taken
end
local want = tonumber(ARGV[1])
if tonumber(ARGV[5]) > 0 then
  start(tonumber(ARGV[5]), {ARGV[6]})
  want = want - 1
end
for number = 1, lists do
  if want <= 0 or failure then break end
  local ids = redis.pcall('LPOP', KEYS[number], want)
  if type(ids) == 'table' and ids.err then
    if is_wrong(ids) then damaged = true else failure = ids end
  elseif type(ids) == 'table' then
    local taken = start(number, ids)
    for place = #ids, taken + 1, -1 do
      redis.call('LPUSH', KEYS[number], ids[place])
    end
    want = want - #ids
  end
end
if failure and #fetched == 0 then return failure end
if damaged then fetched[#fetched + 1] = {0} end
return fetched
