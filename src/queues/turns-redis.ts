/**
 * The steps of `turns.ts` on Redis, each at once. BullMQ's keys of a queue hold ids: `prioritized` sorted by
 * `priority * 2^32 + count`, `delayed` and `completed` by time, `active` newest first. A job is a hash with `priority` and
 * `data`; `de:` and its deduplication id name the job that waits or runs.
 */

/**
 * KEYS: what is kept of turns, and the queue's own, see `keysOf`. ARGV, of all: prefix of the queue's keys, most.
 *
 * Kept: `:numbering`, `:base`, `:former` (base of the numbering before), `:since` (when the numbering began; 0 once every
 * job has its number), `:present`; and per tenant its last turn, when it was taken, and the identity of the job it went to.
 */
const PRELUDE = `
local turns, prioritized, active, completed, delayed = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local own, most = ARGV[1], tonumber(ARGV[2])
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local kept = redis.call('HMGET', turns, ':numbering', ':base', ':former', ':since', ':present')
local function keptAt(i) return tonumber(kept[i] or 0) end
local numbering, base, former, since, present = keptAt(1), keptAt(2), keptAt(3), keptAt(4), keptAt(5)

local function priorityIn(score) return math.floor(tonumber(score) / 0x100000000) end
local function isCurrent(priority) return priority % 2 == numbering % 2 end
local function turnOf(priority)
  return (isCurrent(priority) and base or former) + math.floor(priority / 2)
end
local function priorityOf(turn)
  return 2 * math.min(math.max(turn - base, 1), most) + numbering % 2
end
local function lastOf(tenant)
  local turn, at, identity = string.match(redis.call('HGET', turns, tenant) or '', '^(%d+) (%d+) (%S*)$')
  return tonumber(turn or 0), tonumber(at or 0), identity
end
local function keepLast(tenant, turn, at, identity)
  redis.call('HSET', turns, tenant, string.format('%.0f %.0f %s', math.min(turn, base + most), at, identity or ''))
end
`;

/** ARGV, more: in flight; tenant and identity of each job. Answers with whether jobs wait to be renumbered; priorities. */
export const TAKE_TURNS = `${PRELUDE}
local inFlight = tonumber(ARGV[3])

local head = redis.call('ZRANGE', prioritized, 0, 0, 'WITHSCORES')[2]
if not kept[1] then
  -- Nothing is known: the queue is new, or what was kept is lost and its jobs have their numbers.
  numbering = head and priorityIn(head) % 2 or 0
  redis.call('HSET', turns, ':numbering', numbering)
end

local function comeTo(priority)
  if priority > 1 then present = math.max(present, turnOf(priority)) end
end
if head then comeTo(priorityIn(head)) end
local lately = redis.call('LRANGE', active, 0, 49)
local ended = redis.call('ZREVRANGE', completed, 0, 0, 'WITHSCORES')[2]
-- Several may have ended in one millisecond, and stand in the order of their ids.
local last = ended and redis.call('ZRANGEBYSCORE', completed, ended, ended, 'LIMIT', 0, 50) or {}
for _, id in ipairs(last) do lately[#lately + 1] = id end
for _, id in ipairs(lately) do comeTo(tonumber(redis.call('HGET', own .. id, 'priority') or 0)) end
present = math.max(present, base + 1)
redis.call('HSET', turns, ':present', present)

if since == 0 and present - base > most / 2 then
  -- The first number is for those whose turn has come before, and did not end with it.
  former, base, numbering, since = base, present - 2, numbering + 1, now
  redis.call('HSET', turns, ':former', former, ':base', base, ':numbering', numbering, ':since', since)
end

local function isAhead(identity, at)
  local id = redis.call('GET', own .. 'de:' .. identity)
  if not id then return now - at < inFlight end
  return redis.call('ZSCORE', prioritized, id) or redis.call('ZSCORE', delayed, id)
end

local answer, lines, seen = { since > 0 and 1 or 0 }, {}, {}
for i = 4, #ARGV, 2 do
  local tenant, identity = ARGV[i], ARGV[i + 1]
  local line = lines[tenant]
  if not line then
    local last, at, newest = lastOf(tenant)
    line = { next = newest and isAhead(newest, at) and math.max(last + 1, present) or present }
    lines[tenant] = line
  end
  answer[#answer + 1] = priorityOf(line.next)
  if not seen[identity] and redis.call('EXISTS', own .. 'de:' .. identity) == 0 then
    line.next, line.newest = line.next + 1, identity
  end
  seen[identity] = true
end
for tenant, line in pairs(lines) do
  if line.newest then keepLast(tenant, line.next - 1, now, line.newest) end
end
return answer
`;

/**
 * ARGV, more: owner, lease, jobs of a page, where to go on (which of the KEYS, and a place in it). Answers with where to go
 * on, how many were renumbered, and the age of the numbering; with nothing where it is somebody else's to do, or done.
 */
export const RENUMBER = `${PRELUDE}
local owner, lease, page, from = ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[5]), ARGV[6]
local held = redis.call('HMGET', turns, ':owner', ':until')
if since == 0 or (held[1] and held[1] ~= owner and tonumber(held[2]) > now) then return {} end
redis.call('HSET', turns, ':owner', owner, ':until', now + lease)

-- The last of the numbers may stand for any number of turns: such jobs line up anew behind their tenant's others.
local function anew(id, turn)
  local known, payload = pcall(cjson.decode, redis.call('HGET', own .. id, 'data'))
  if not known or type(payload) ~= 'table' or not string.match(tostring(payload.tenantId), '^[%w._-]+$') then
    return turn
  end
  local last, at, newest = lastOf(payload.tenantId)
  turn = math.max(last + 1, turn)
  keepLast(payload.tenantId, turn, at, newest)
  return turn
end

local renumbered = 0
local function renumber(id, score)
  local priority = tonumber(redis.call('HGET', own .. id, 'priority') or 0)
  if priority < 2 or isCurrent(priority) then return end
  local turn = turnOf(priority)
  local number = priorityOf(math.floor(priority / 2) < most and turn or anew(id, turn))
  if score then redis.call('ZADD', prioritized, 'XX', score + (number - priority) * 0x100000000, id) end
  redis.call('HSET', own .. id, 'priority', number)
  renumbered = renumbered + 1
end

local set, place = string.match(from, '^(%d+) (.*)$')
set = tonumber(set or 2)
local key, count = KEYS[set], 0
if set == 2 then
  local found = redis.call('ZRANGEBYSCORE', key, place or '-inf', '+inf', 'WITHSCORES', 'LIMIT', 0, page)
  for i = 1, #found, 2 do renumber(found[i], tonumber(found[i + 1])) end
  count, place = #found / 2, '(' .. (found[#found] or '')
else
  local kind = redis.call('TYPE', key).ok
  local at = tonumber(place)
  local found = kind == 'list' and redis.call('LRANGE', key, at, at + page - 1)
    or kind == 'zset' and redis.call('ZRANGE', key, at, at + page - 1) or {}
  for _, id in ipairs(found) do renumber(id) end
  count, place = #found, at + #found
end
if count < page then set, place = set + 1, 0 end
return { set <= #KEYS and set .. ' ' .. place or '', renumbered, now - since }
`;

/** ARGV, more: owner, and 1 where every job has its number. Gives back the lease. */
export const LEAVE_NUMBERING = `${PRELUDE}
if redis.call('HGET', turns, ':owner') ~= ARGV[3] then return end
redis.call('HDEL', turns, ':owner', ':until')
if ARGV[4] == '1' then redis.call('HSET', turns, ':since', 0, ':former', base) end
`;

/** KEYS of the scripts. */
export function keysOf(prefix: string, queue: string): string[] {
  const sets = ['prioritized', 'active', 'completed', 'delayed', 'wait', 'paused', 'failed'];
  return [`${prefix}:turns:${queue}`, ...sets.map((set) => `${prefix}:${queue}:${set}`)];
}
