/** What Redis does by itself, at once: comparing an entry with the one that is there. The head is `envelope.ts`'s. */

/**
 * Answers whether an entry is there that must stay: of this run, and newer than the head that is given. Flags: 1 what no
 * tier promised to keep, 2 a tombstone.
 */
const STAYS = `
local function stays(key, new)
  local old = redis.pcall('GETRANGE', key, 0, 25)
  if type(old) ~= 'string' or #old < 26 or string.sub(old, 1, 8) ~= string.sub(new, 1, 8) then return false end
  local oldGeneration, oldVersion, oldFlags = struct.unpack('>I8I8B', old, 9)
  local newGeneration, newVersion, newFlags = struct.unpack('>I8I8B', new, 9)
  -- A tombstone says what is older than its version to be gone, of whatever generation; a value as old as it may come.
  if newFlags == 2 then return oldVersion >= newVersion end
  if oldFlags == 2 then return oldVersion > newVersion end
  -- What nobody promised to keep gives way to what PostgreSQL has, however old that is.
  if oldFlags == 1 and newFlags == 0 then return oldGeneration > newGeneration end
  if oldGeneration ~= newGeneration then return oldGeneration > newGeneration end
  return oldVersion > newVersion
end
`;

/** KEYS: entries. ARGV: for each, its lifetime in milliseconds and its bytes. Writes what is not older. */
export const WRITE = `${STAYS}
for i, key in ipairs(KEYS) do
  local new = ARGV[2 * i]
  if not stays(key, new) then redis.call('SET', key, new, 'PX', ARGV[2 * i - 1]) end
end
return #KEYS
`;

/**
 * KEYS: entries. ARGV: the lifetime of a tombstone in milliseconds, then the head of one for each: what is older goes,
 * and cannot come back by a backfill that is still under way. Works without a byte of memory to spare.
 */
export const DROP = `${STAYS}
for i, key in ipairs(KEYS) do
  local new = ARGV[i + 1]
  if not stays(key, new) then
    redis.call('UNLINK', key)
    redis.pcall('SET', key, new, 'PX', ARGV[1])
  end
end
return #KEYS
`;

/** KEYS: entries. ARGV: the run. A version for each that is greater than the one there and not before now. */
export const NEXT_VERSIONS = `
local now = redis.call('TIME')
local next = {}
for i, key in ipairs(KEYS) do
  next[i] = now[1] * 1000000 + now[2]
  local old = redis.pcall('GETRANGE', key, 0, 25)
  if type(old) == 'string' and #old == 26 and string.sub(old, 1, 8) == ARGV[1] then
    local _, version = struct.unpack('>I8I8', old, 9)
    if version >= next[i] then next[i] = version + 1 end
  end
end
return next
`;

/** KEYS: copies of generations. ARGV: their lifetime in milliseconds, then a head for each. They never go back. */
export const RAISE = `
for i, key in ipairs(KEYS) do
  local new = ARGV[i + 1]
  local old = redis.pcall('GETRANGE', key, 0, 25)
  local known = 0
  if type(old) == 'string' and #old == 26 and string.sub(old, 1, 8) == string.sub(new, 1, 8) then
    known = struct.unpack('>I8', old, 9)
  end
  if known > struct.unpack('>I8', new, 9) then redis.call('PEXPIRE', key, ARGV[1])
  else redis.call('SET', key, new, 'PX', ARGV[1]) end
end
return #KEYS
`;

/**
 * KEYS: entries. ARGV: the run, then a generation for each. What is of another run or of an earlier generation goes. A
 * tombstone (flags 2, no generation) stays: it may guard a key of the present generation.
 */
export const FORGET = `
local function isDead(head, before)
  if type(head) ~= 'string' or #head < 26 or string.sub(head, 1, 8) ~= ARGV[1] then return true end
  local generation, _, flags = struct.unpack('>I8I8B', head, 9)
  return generation < tonumber(before) and not (flags == 2 and generation == 0)
end
for i, key in ipairs(KEYS) do
  if isDead(redis.pcall('GETRANGE', key, 0, 25), ARGV[i + 1]) then redis.call('UNLINK', key) end
end
return #KEYS
`;
