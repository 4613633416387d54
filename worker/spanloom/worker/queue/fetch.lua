-- KEYS: the lists, most urgent first; for each of them the set of its started jobs.
-- Pops up to ARGV[1] jobs, marks them started and lists them as RQ does. ARGV[5] and ARGV[6] are the number of a list
-- and a job that a blocking pop took from it. A started job expires ARGV[7] seconds after its worker renewed it last;
-- one that waits never does. Returns the number of its list, its id and its data for each job. The keys of the jobs'
-- hashes can't be among KEYS: which jobs they are is known once they are popped. ARGV[8] is what these keys begin with;
-- a hash tag in RQ's prefix keeps them in the slot of the lists.
local lists = #KEYS / 2
local fetched = {}
local function start(number, id)
  local key = ARGV[8] .. id
  local data = redis.call('HGET', key, 'data')
  if data then
    redis.call('HSET', key, 'status', 'started', 'started_at', ARGV[3], 'worker_name', ARGV[2])
    redis.call('EXPIRE', key, ARGV[7])
    redis.call('ZADD', KEYS[lists + number], ARGV[4], id .. ':' .. ARGV[2])
    fetched[#fetched + 1] = {number, id, data}
  else
    redis.call('DEL', key)
  end
end
local want = tonumber(ARGV[1])
if tonumber(ARGV[5]) > 0 then
  start(tonumber(ARGV[5]), ARGV[6])
  want = want - 1
end
for number = 1, lists do
  while want > 0 do
    local id = redis.call('LPOP', KEYS[number])
    if not id then break end
    start(number, id)
    want = want - 1
  end
end
return fetched
