-- Withdraw one incarnation's claim on a chain from block `start` on.
--
-- KEYS[1]  kv:{<namespace>}:n:
-- ARGV[1]  incarnation (8 bytes)
-- ARGV[2]  start: the first block that is no longer held
-- ARGV[3]  the chain down to the deepest block that was held: 16-byte block hashes, concatenated
-- returns  the number of runs that changed
--
--   before   [h0 h1 h2 h3]  [h4 h5]            A has 6, B has 3
--   cut      start 2 by A
--   after    [h0 h1 h2]                        A has 2, B has 3      blocks nobody holds are trimmed,
--                                                                    a run nobody holds is unlinked
--
-- The walk goes on below `start` so that no deeper run keeps a claim that a later insert would reconnect. It cannot
-- step over a run that is gone, hence the caller's order: side branches before the blocks they hang from.

local prefix, incarnation, start, chain = KEYS[1], ARGV[1], tonumber(ARGV[2]), ARGV[3]
local num_blocks = #chain / HASH

-- Lowers our claim to `upto` blocks; false when it was not above that.
local function lower(run, upto)
  for at, holder in ipairs(run.holders) do
    if holder.incarnation == incarnation then
      if holder.upto <= upto then
        return false
      end
      holder.upto = upto
      if upto == 0 then
        table.remove(run.holders, at)
      end
      return true
    end
  end
  return false
end

local function longest_claim(run)
  local longest = 0
  for _, holder in ipairs(run.holders) do
    longest = math.max(longest, holder.upto)
  end
  return longest
end

local i, num_changed = 0, 0
while i < num_blocks do
  local key = prefix .. hash_at(chain, i)
  local run = decode(redis.call('GET', key))
  if not run then
    break
  end
  local matched = matched_blocks(run, chain, i)
  local kept = math.max(0, start - i)
  if kept < matched and lower(run, kept) then
    num_changed = num_changed + 1
    local longest = longest_claim(run)
    if longest == 0 then
      redis.call('UNLINK', key)
    else
      run.prints = string.sub(run.prints, 1, longest * PRINT)
      redis.call('SET', key, encode(run), 'KEEPTTL')
    end
  end
  i = i + matched
end
return num_changed
