-- Claim a whole chain for one incarnation.
--
-- KEYS[1]  kv:{<namespace>}:n:
-- ARGV[1]  incarnation (8 bytes)     ARGV[2]  tier (0..255)
-- ARGV[3]  seconds to live           ARGV[4]  most blocks in a run
-- ARGV[5]  the chain: 16-byte block hashes, concatenated
-- returns  the number of blocks that were new to the trie
--
--   before   [h0 h1 h2 h3]                     A has 4
--   insert   h0 h1 h2 h3 h4 h5   by B
--   after    [h0 h1 h2 h3 h4 h5]               A has 4, B has 6      a run that the chain has whole grows at its end
--   insert   h0 h1 g2 g3         by A
--   after    [h0 h1 h2 h3 h4 h5]  [g2 g3]      A leaves the run at 2 and goes on at the key g2
--
-- The latest claimant stands first and MAX_HOLDERS stay: what dead incarnations left sinks to the end and falls off.

local prefix, incarnation, tier = KEYS[1], ARGV[1], tonumber(ARGV[2])
local ttl, max_run, chain = ARGV[3], tonumber(ARGV[4]), ARGV[5]
local num_blocks = #chain / HASH

-- Puts our claim first; false when it already stood there and says as much.
local function claim(run, upto)
  for at, holder in ipairs(run.holders) do
    if holder.incarnation == incarnation then
      if at == 1 and holder.upto >= upto and holder.tier == tier then
        return false
      end
      upto = math.max(upto, holder.upto)
      table.remove(run.holders, at)
      break
    end
  end
  table.insert(run.holders, 1, { incarnation = incarnation, tier = tier, upto = upto })
  run.holders[MAX_HOLDERS + 1] = nil
  return true
end

local function store(key, run)
  redis.call('SET', key, encode(run), 'EX', ttl)
end

local unchanged = {}
local i, last_key, last_run = 0, nil, nil
while i < num_blocks do
  local key = prefix .. hash_at(chain, i)
  local run = decode(redis.call('GET', key))
  if not run then
    break
  end
  local matched = matched_blocks(run, chain, i)
  if claim(run, matched) then
    store(key, run)
  else
    unchanged[#unchanged + 1] = key
  end
  i = i + matched
  last_key, last_run = nil, nil
  if matched == run.num_blocks then
    last_key, last_run = key, run
  end
end

local num_new = num_blocks - i
if num_new > 0 and last_run and last_run.num_blocks < max_run then
  local stop = math.min(num_blocks, i + max_run - last_run.num_blocks)
  last_run.prints = last_run.prints .. prints_of(chain, i, stop)
  claim(last_run, #last_run.prints / PRINT)
  store(last_key, last_run)
  i = stop
end
while i < num_blocks do
  local stop = math.min(num_blocks, i + max_run)
  local run = { holders = {}, prints = prints_of(chain, i, stop) }
  claim(run, stop - i)
  store(prefix .. hash_at(chain, i), run)
  i = stop
end
-- Last, because a script that has written anything is no longer refused when memory is short.
for _, key in ipairs(unchanged) do
  redis.call('EXPIRE', key, ttl)
end
return num_new
