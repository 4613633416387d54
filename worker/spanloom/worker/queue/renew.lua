-- KEYS: pairs of the set of a list's started jobs and a job's hash; ARGV from 4 on: the ids of these jobs, in order.
-- Renews them; what was put back or failed in between is left as it is.
for number = 1, #KEYS, 2 do
  redis.pcall('ZADD', KEYS[number], 'XX', ARGV[2], ARGV[3 + (number + 1) / 2] .. ':' .. ARGV[1])
  local job = redis.pcall('HMGET', KEYS[number + 1], 'status', 'worker_name')
  if job[1] == 'started' and job[2] == ARGV[1] then
    redis.call('EXPIRE', KEYS[number + 1], ARGV[3])
  end
end
