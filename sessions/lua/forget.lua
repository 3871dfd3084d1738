-- Forget some of the records of replies under a root.
--
-- KEYS[1]  kv:{<namespace>}:     as in keep.lua
-- ARGV[1]  how many at most
-- returns  the number of records that are left
--
-- A few hundred at a time, so that nobody waits long for the server.

local set = KEYS[1] .. 'rs'
for _, key in ipairs(redis.call('ZRANGE', set, 0, ARGV[1] - 1)) do
  redis.call('UNLINK', KEYS[1] .. 'r:' .. key)
  redis.call('ZREM', set, key)
end
return redis.call('ZCARD', set)
