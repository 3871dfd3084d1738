-- Renew this incarnation's lease; learn who else is alive and whether the server still has its data.
--
-- KEYS[1]  kv:{<fleet>}:      its slot holds  live  ZSET  incarnation -> end of its lease, ms of the server's own clock
--                                             rep   HASH  incarnation -> msgpack record of the replica
--                                             gen   STRING  8 random bytes, written once: a new value = data was lost
-- ARGV[1]  incarnation (8 bytes)     ARGV[2]  lease in ms
-- ARGV[3]  the replica's record      ARGV[4]  8 random bytes: the generation, if there is none
-- returns  { generation ('' = unknown), 1 = the lease is new or had lapsed, 1 = writes are accepted, { live incarnations } }
--
-- The server's TIME is the only clock: none is ever compared with another. While writes are refused nobody can renew,
-- so the end of a lease says nothing, and the live set is given as it was last written.

local REFUSALS = { OOM = true, READONLY = true, MISCONF = true, NOREPLICAS = true }
local live, rep, gen = KEYS[1] .. 'live', KEYS[1] .. 'rep', KEYS[1] .. 'gen'
local incarnation, lease_ms, record, candidate = ARGV[1], tonumber(ARGV[2]), ARGV[3], ARGV[4]

local clock = redis.call('TIME')
local now_ms = clock[1] * 1000 + math.floor(clock[2] / 1000)

local joined = redis.pcall('ZADD', live, string.format('%.0f', now_ms + lease_ms), incarnation)
if type(joined) == 'table' and joined.err then
  if not REFUSALS[string.match(joined.err, '^%-?(%u+)') or ''] then
    return joined
  end
  return { redis.call('GET', gen) or '', 0, 0, redis.call('ZRANGE', live, 0, -1) }
end

for _, dead in ipairs(redis.call('ZRANGEBYSCORE', live, '-inf', string.format('%.0f', now_ms))) do
  redis.call('ZREM', live, dead)
  redis.call('HDEL', rep, dead)
end
redis.call('HSET', rep, incarnation, record)
redis.call('SET', gen, candidate, 'NX')
return { redis.call('GET', gen), joined, 1, redis.call('ZRANGE', live, 0, -1) }
