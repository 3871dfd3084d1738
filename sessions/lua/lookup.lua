-- How much of a chain is known, and who has it.
--
-- KEYS[1]  kv:{<namespace>}:n:   the prefix of the namespace's runs (node keys are computed from it, in its slot)
-- ARGV[1]  seconds to live given to every run on the way; 0 = leave it
-- ARGV[2]  the chain: 16-byte block hashes, concatenated
-- returns  { matched blocks, incarnation, its blocks, their deepest tier, incarnation, ... }
--
--   chain     h0 h1 h2 h3 | h4 h5 h6           runs at h0 and h4
--   A.upto          4     |    2        ->     A has 6
--   B.upto       3        |       3     ->     B has 3: it lacks h3, so its claim on h4.. cannot be reached
--
-- A holder's claim counts only while it is unbroken from the root. GETEX may be refused (no memory, read-only replica,
-- failed snapshot, Redis < 6.2) while reading is fine: then a plain GET does.

local prefix, ttl, chain = KEYS[1], tonumber(ARGV[1]), ARGV[2]
local num_blocks = #chain / HASH

local function read(key)
  local value = ttl > 0 and redis.pcall('GETEX', key, 'EX', ttl)
  if type(value) ~= 'string' then
    value = redis.call('GET', key)
  end
  return decode(value)
end

local depth, tier, order = {}, {}, {}
local i = 0
while i < num_blocks do
  local run = read(prefix .. hash_at(chain, i))
  if not run then
    break
  end
  local matched = matched_blocks(run, chain, i)
  for _, holder in ipairs(run.holders) do
    local who = holder.incarnation
    if i == 0 then
      order[#order + 1] = who
    end
    if i == 0 or depth[who] == i then
      depth[who] = i + math.min(holder.upto, matched)
      tier[who] = holder.tier
    end
  end
  i = i + matched
end

local reply = { i }
for _, who in ipairs(order) do
  reply[#reply + 1] = who
  reply[#reply + 1] = depth[who]
  reply[#reply + 1] = tier[who]
end
return reply
