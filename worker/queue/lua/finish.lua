-- A job has ended: it leaves the queue, its result stays for a while, orders for it are done with.
--
-- Only its holder may end it. A lease that has expired and that nobody took counts as held.
--
-- KEYS queue, lease, payload, try, result, cancelled, paused, abort, pace
-- ARGV id, owner, result ('' for none), life of the result in ms
-- returns 1, or 0 where another worker has the job
local holder = redis.call('GET', KEYS[2])
if holder and holder ~= ARGV[2] then return 0 end
redis.call('DEL', KEYS[2], KEYS[3], KEYS[4])
redis.call('ZREM', KEYS[1], ARGV[1])
redis.call('SREM', KEYS[6], ARGV[1])
redis.call('SREM', KEYS[7], ARGV[1])
redis.call('ZREM', KEYS[8], ARGV[1])
redis.call('HDEL', KEYS[9], ARGV[1])
if ARGV[3] ~= '' and tonumber(ARGV[4]) > 0 then redis.call('SET', KEYS[5], ARGV[3], 'PX', ARGV[4]) end
return 1
