-- The run record and its arithmetic: prepended to lookup.lua, insert.lua and cut.lua when they are loaded.
--
-- A run is a stretch of a chain of block hashes. It is one Redis string, under KEYS[1] .. <hash of its first block>:
--
--   0            2             4                                    4 + 11 h
--   +------------+-------------+------------------------------------+------------------------------+
--   | num_blocks | num_holders | h holders, the latest first         | num_blocks prints            |
--   | u16        | u16         | incarnation 8 B | tier u8 | upto u16 | first 8 B of each block hash |
--   +------------+-------------+------------------------------------+------------------------------+
--   integers are little endian; `upto` = the holder has the first `upto` blocks of this run
--
-- A block hash binds all blocks before it, so two chains that agree at a block agree before it: where a chain leaves
-- a run is found by binary search, a branch needs no child list (it hangs at the key of its own first hash), and
-- nothing is ever split. Redis 6.2, 7 and Valkey read this alike: no `struct`, no `bit`, no functions.

local HASH, PRINT, HOLDER, HEADER = 16, 8, 11, 4
local MAX_HOLDERS = 64

local function u16(bytes, at)
  local low, high = string.byte(bytes, at, at + 1)
  return low + 256 * high
end

local function pack_u16(number)
  return string.char(number % 256, math.floor(number / 256))
end

-- The hash of block `i` (from 0) of a chain.
local function hash_at(chain, i)
  return string.sub(chain, i * HASH + 1, (i + 1) * HASH)
end

-- The first 8 bytes of the hashes of blocks [from, to) of a chain.
local function prints_of(chain, from, to)
  local prints = {}
  for i = from, to - 1 do
    prints[#prints + 1] = string.sub(chain, i * HASH + 1, i * HASH + PRINT)
  end
  return table.concat(prints)
end

-- string -> run, or nil where there is none (absent, or not written by us).
local function decode(value)
  if type(value) ~= 'string' or #value < HEADER then
    return nil
  end
  local num_blocks, num_holders = u16(value, 1), u16(value, 3)
  local prints_at = HEADER + HOLDER * num_holders
  if #value ~= prints_at + PRINT * num_blocks then
    return nil
  end
  local holders = {}
  for at = HEADER, prints_at - HOLDER, HOLDER do
    holders[#holders + 1] = {
      incarnation = string.sub(value, at + 1, at + 8),
      tier = string.byte(value, at + 9),
      upto = u16(value, at + 10),
    }
  end
  return { num_blocks = num_blocks, holders = holders, prints = string.sub(value, prints_at + 1) }
end

local function encode(run)
  local parts = { pack_u16(#run.prints / PRINT), pack_u16(#run.holders) }
  for _, holder in ipairs(run.holders) do
    parts[#parts + 1] = holder.incarnation .. string.char(holder.tier) .. pack_u16(holder.upto)
  end
  parts[#parts + 1] = run.prints
  return table.concat(parts)
end

-- How many blocks of `run`, which hangs at block `i` of `chain`, the chain has too: at least 1, the key says so.
local function matched_blocks(run, chain, i)
  local low, high = 1, math.min(run.num_blocks, #chain / HASH - i)
  while low < high do
    local middle = math.ceil((low + high) / 2)
    local print_at, hash_starts_at = (middle - 1) * PRINT, (i + middle - 1) * HASH
    local ours = string.sub(run.prints, print_at + 1, print_at + PRINT)
    if ours == string.sub(chain, hash_starts_at + 1, hash_starts_at + PRINT) then
      low = middle
    else
      high = middle - 1
    end
  end
  return low
end

