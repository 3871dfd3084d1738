-- Write a document of a tenant's, renew those it builds on, and forget the tenant's least recently used past a bound.
--
-- KEYS[1]  doc:{<shelf>}:     its slot holds  d:<name>  STRING  a document: 8 bytes of version, then what it says; expires
--                                             used      ZSET    name -> when it was last written or built on, µs of
--                                                               the server's own clock
-- ARGV[1]  name               ARGV[2]  the document
-- ARGV[3]  ttl in seconds     ARGV[4]  most documents of this tenant
-- ARGV[5]  the version that stands there now ('' = whatever does)
-- ARGV[6...]  names to renew
-- returns  1 = written, 0 = another version stands there, or none

local prefix, used = KEYS[1] .. 'd:', KEYS[1] .. 'used'
local name, document, ttl_s, most, version = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4]), ARGV[5]

if version ~= '' and redis.call('GETRANGE', prefix .. name, 0, 7) ~= version then
  return 0
end
local clock = redis.call('TIME')
local now_us = clock[1] * 1000000 + clock[2]
local function score(us) return string.format('%.0f', us) end

redis.call('SET', prefix .. name, document, 'EX', ttl_s)
for at = 6, #ARGV do
  if redis.call('EXPIRE', prefix .. ARGV[at], ttl_s) == 1 then
    redis.call('ZADD', used, score(now_us), ARGV[at])
  end
end
redis.call('ZADD', used, score(now_us + 1), name) -- the last to go of those it builds on
redis.call('ZREMRANGEBYSCORE', used, '-inf', score(now_us - ttl_s * 1000000))
redis.call('EXPIRE', used, ttl_s)
for _, oldest in ipairs(redis.call('ZRANGE', used, 0, -1 - most)) do
  redis.call('DEL', prefix .. oldest)
  redis.call('ZREM', used, oldest)
end
return 1
