-- Keep the record of a reply where it can be found again to be forgotten; or note that a salt of the tenant's has some.
--
-- KEYS[1]  kv:{<namespace>}:     its slot holds  r:<turn key>  STRING  a record
--                                                rs            ZSET    turn key -> end of its record, ms of the server's clock
--                                                salts         ZSET    namespace of a salted root -> end of its records
-- ARGV[1]  the set: 'rs' or 'salts'     ARGV[2]  its member
-- ARGV[3]  seconds to live              ARGV[4]  the record, '' for none
-- returns  the number of members
--
-- The record is written before it is noted: a script that has written anything is no longer refused when memory is
-- short. Of what has ended, some is taken out each time, so a set holds little more than what lives.

local SOME = 64
local set, member, ttl = KEYS[1] .. ARGV[1], ARGV[2], tonumber(ARGV[3])

if ARGV[4] ~= '' then
  redis.call('SET', KEYS[1] .. 'r:' .. member, ARGV[4], 'EX', ttl)
end
local clock = redis.call('TIME')
local now_ms = clock[1] * 1000 + math.floor(clock[2] / 1000)
redis.call('ZADD', set, string.format('%.0f', now_ms + 1000 * ttl), member)
for _, ended in ipairs(redis.call('ZRANGEBYSCORE', set, '-inf', string.format('%.0f', now_ms), 'LIMIT', 0, SOME)) do
  redis.call('ZREM', set, ended)
end
local last = redis.call('ZRANGE', set, -1, -1, 'WITHSCORES')
redis.call('EXPIRE', set, math.ceil((tonumber(last[2]) - now_ms) / 1000))
return redis.call('ZCARD', set)
