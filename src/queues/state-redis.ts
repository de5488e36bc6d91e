/** `QueueState` on Redis: what `queue_state.*` of `drizzle/` does on PostgreSQL, at once and by the server's clock. */
import type { Job } from 'bullmq';
import { Redis } from 'ioredis';
import { evaluate } from '../redis-script.js';
import type { HostRules, Standing, Visitor, VisitStep } from './host-schedule.js';
import type { OverdueHosts, QueueState } from './state.js';
import type { Comer, RenumberStep, TakenTurns, TurnRules } from './turns.js';
import { keysOf, LEAVE_NUMBERING, RENUMBER, TAKE_TURNS } from './turns-redis.js';

/** Longer than anybody is in line, or does not come for its permit. */
const EXPECTED_FORGOTTEN_MS = 30 * 24 * 3_600_000;
/** That a host was cooled down is remembered so much longer than it lasts: one at a time asks it then. */
const COOLED_FORGOTTEN_MS = 3_600_000;

/**
 * KEYS: host (hash: `next`, when the last one `began`, `cooled`, and of the line the `place` it has come to and its
 * `arrivals`), permits (sorted by their end), starts (hash: beginning of a permit, 0 once it has begun), line (sorted by
 * place, and by arrival within one), tenants (hash: the last place that each has in the line), due (hosts, sorted by when
 * somebody should have come to them). ARGV: step, job, most, gap, lease, cool, tenant, host; all times in whole
 * milliseconds. Only the next beginning is booked: the one behind it is a gap after it really was, however late that may be.
 */
const VISIT = `
local step, job, tenant = ARGV[1], ARGV[2], ARGV[7]
local most, gap, lease, cool = tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local next = tonumber(redis.call('HGET', KEYS[1], 'next') or 0)
local cooled = tonumber(redis.call('HGET', KEYS[1], 'cooled') or 0)
local began = math.min(tonumber(redis.call('HGET', KEYS[1], 'began') or 0), now)
local reached = tonumber(redis.call('HGET', KEYS[1], 'place') or 0)
local answer = {}

local function release(one)
  redis.call('ZREM', KEYS[2], one)
  redis.call('HDEL', KEYS[3], one)
end
local function hold(one, start, begun)
  redis.call('ZADD', KEYS[2], math.max(start, now) + lease, one)
  redis.call('HSET', KEYS[3], one, begun and 0 or start)
end
local function mayGrant()
  local permits = redis.call('HVALS', KEYS[3])
  if #permits >= most then return false end
  for _, start in ipairs(permits) do
    if gap > 0 and start ~= '0' then return false end
  end
  return true
end

local function lineUp(one, place)
  local arrival = redis.call('HINCRBY', KEYS[1], 'arrivals', 1) % 2^30
  redis.call('ZADD', KEYS[4], place + arrival / 2^30, one)
end

for _, dead in ipairs(redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', now)) do
  if redis.call('HGET', KEYS[3], dead) ~= '0' then lineUp(dead, reached) end
  release(dead)
end

-- A gap counts from the last beginning, also where it was not known then: whoever reads the rules first has asked for them
-- under another one.
local soonest = began + gap
next = math.max(next, soonest)

if step == 'leave' then
  local start = tonumber(redis.call('HGET', KEYS[3], job) or -1)
  if start > 0 then next = math.max(math.min(next, start), soonest) end
  if start == 0 and cool == 0 and now > cooled then cooled = 0 end
  release(job)
  redis.call('ZREM', KEYS[4], job)
  if cool > 0 then
    cooled = math.max(cooled, now + cool)
    next = math.max(next, cooled)
    local held = redis.call('ZRANGE', KEYS[2], 0, -1)
    local first = redis.call('ZRANGE', KEYS[4], 0, 0, 'WITHSCORES')
    local place = math.min(math.floor(tonumber(first[2] or 0)), 0)
    for i = #held, 1, -1 do
      if redis.call('HGET', KEYS[3], held[i]) ~= '0' then
        release(held[i])
        place = place - 1
        redis.call('ZADD', KEYS[4], place, held[i])
      end
    end
  end
elseif step == 'enter' or step == 'again' or step == 'also' then
  local start = tonumber(redis.call('HGET', KEYS[3], job) or -1)
  -- Who was given its time since the host was cooled down, and comes too early, keeps it.
  if start >= 0 and step ~= 'again' and now < cooled and start < cooled then
    release(job)
    start = -1
  end
  if start < 0 then
    if not redis.call('ZSCORE', KEYS[4], job) then
      local own = math.max(reached, tonumber(redis.call('HGET', KEYS[5], tenant) or 0)) + 1
      lineUp(job, own)
      redis.call('HSET', KEYS[5], tenant, own)
    end
  else
    -- Who began under it, and comes once more, may have made its request by now: this is another one.
    if step == 'again' or (step == 'enter' and start == 0) then start = math.max(now, next)
    -- Somebody may have begun beside who was booked.
    elseif start > 0 then start = math.max(start, soonest) end
    next = math.max(next, math.max(start, now) + gap)
    hold(job, start, start <= now)
    if start <= now then began = now end
  end
end

if step == 'tend' then
  local starts = redis.call('HGETALL', KEYS[3])
  for i = 1, #starts, 2 do
    if starts[i + 1] ~= '0' then answer[#answer + 1] = { starts[i], math.max(tonumber(starts[i + 1]) - now, 0), 1 } end
  end
end
if cooled > 0 then most = 1 end
while mayGrant() do
  local popped = redis.call('ZPOPMIN', KEYS[4])
  local first = popped[1]
  if not first then break end
  reached = math.max(reached, math.floor(tonumber(popped[2])))
  next = math.max(now, next)
  local begins = first == job and step ~= 'look' and next <= now
  hold(first, next, begins)
  if begins then began = now end
  if first ~= job then answer[#answer + 1] = { first, next - now, 1 } end
  next = next + gap
end

if step ~= 'leave' and step ~= 'tend' then
  local start = tonumber(redis.call('HGET', KEYS[3], job) or -1)
  if start >= 0 then
    answer[#answer + 1] = { job, math.max(start - now, 0), 1 }
  else
    local ahead = (redis.call('ZRANK', KEYS[4], job) or -1) + 1
    answer[#answer + 1] = { job, math.max(next - now, 0) + ahead * gap + math.ceil(ahead / most) * lease, 0 }
  end
end

local inLine = redis.call('EXISTS', KEYS[4]) == 1
if not inLine then
  redis.call('DEL', KEYS[5])
  reached = 0
end
redis.call('HSET', KEYS[1], 'next', next, 'began', began, 'cooled', cooled, 'place', reached)

local due
for _, start in ipairs(redis.call('HVALS', KEYS[3])) do
  if start ~= '0' then due = math.min(due or math.huge, tonumber(start)) end
end
if inLine then due = due or tonumber(redis.call('ZRANGE', KEYS[2], 0, 0, 'WITHSCORES')[2] or now) end
if due then
  redis.call('ZADD', KEYS[6], step == 'tend' and math.max(due, now) or due, ARGV[8])
else
  redis.call('ZREM', KEYS[6], ARGV[8])
end

local meant = math.max(next, tonumber(redis.call('ZRANGE', KEYS[2], -1, -1, 'WITHSCORES')[2] or 0))
if cooled > 0 then meant = math.max(meant, cooled + ${COOLED_FORGOTTEN_MS}) end
local lifetime = due and ${EXPECTED_FORGOTTEN_MS} or math.max(math.ceil(meant - now), 1)
for i = 1, 5 do redis.call('PEXPIRE', KEYS[i], lifetime) end
return answer
`;

/** KEYS: due. ARGV: grace, most. Answers with hosts that are due for so long; for others they become due only now. */
const OVERDUE = `
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local hosts = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now - tonumber(ARGV[1]), 'LIMIT', 0, ARGV[2])
for _, host in ipairs(hosts) do redis.call('ZADD', KEYS[1], now, host) end
return hosts
`;

export class RedisQueueState implements QueueState {
  readonly #redis: Redis;

  constructor(
    url: string,
    private readonly prefix: string,
    onError: (error: Error) => void,
  ) {
    this.#redis = new Redis(url, { lazyConnect: true, maxRetriesPerRequest: 1 });
    this.#redis.on('error', onError);
  }

  async visit(
    step: VisitStep,
    host: string,
    { job, tenantId = '' }: Visitor,
    { most, gapMs, leaseMs, coolMs = 0 }: HostRules & { coolMs?: number },
  ): Promise<Standing[]> {
    const own = ['', ':permits', ':starts', ':line', ':tenants'].map((part) => `${this.prefix}:host:${host}${part}`);
    const args = [step, job, most, gapMs, leaseMs, coolMs, tenantId, host];
    const answer = await evaluate(this.#redis, VISIT, [...own, this.#due], args);
    return (answer as [string, number, number][]).map(([name, delayMs, booked]) => ({
      job: name,
      delayMs,
      booked: booked === 1,
    }));
  }

  async overdueHosts(graceMs: number, most: number): Promise<OverdueHosts> {
    const hosts = (await evaluate(this.#redis, OVERDUE, [this.#due], [graceMs, most])) as string[];
    return { hosts, more: hosts.length === most };
  }

  async promote(job: Job): Promise<void> {
    await job.promote();
  }

  async takeTurns(queue: string, jobs: readonly Comer[], rules: TurnRules): Promise<TakenTurns> {
    const comers = jobs.flatMap(({ tenantId, identity }) => [tenantId, identity]);
    const answer = await this.#turns(TAKE_TURNS, queue, [rules.most, rules.inFlightMs, ...comers]);
    const [outdated, ...priorities] = answer as number[];
    return { priorities, outdated: outdated === 1 };
  }

  async renumber(queue: string, owner: string, from: string, rules: TurnRules): Promise<RenumberStep | null> {
    const answer = await this.#turns(RENUMBER, queue, [rules.most, owner, rules.leaseMs, rules.page, from]);
    if ((answer as unknown[]).length === 0) return null;
    const [next, renumbered, ageMs] = answer as [string, number, number];
    return { next: next || null, renumbered, ageMs };
  }

  async leaveNumbering(queue: string, owner: string, ended: boolean): Promise<void> {
    await this.#turns(LEAVE_NUMBERING, queue, [0, owner, ended ? 1 : 0]);
  }

  get #due(): string {
    return `${this.prefix}:hosts`;
  }

  #turns(script: string, queue: string, args: readonly (string | number)[]): Promise<unknown> {
    return evaluate(this.#redis, script, keysOf(this.prefix, queue), [`${this.prefix}:${queue}:`, ...args]);
  }

  async close(): Promise<void> {
    this.#redis.disconnect();
  }
}
