/**
 * Before every request to a stranger: may we, and when. Robots rules come through the hybrid cache; while nobody knows
 * those of a host, one request at a time asks for them. The times are kept by the host schedule, over all processes.
 */
import { known } from '../src/cache/answer.js';
import type { HybridCache } from '../src/cache/hybrid.js';
import { entry } from '../src/cache/tier.js';
import type { Fetcher, Leave } from '../src/crawl/fetch.js';
import { allowedGap, crawlDelay, robotsOf, unreachableRobots } from '../src/crawl/robots.js';
import { DeferredError, JobLostError, RejectedError, RetryableError } from '../src/errors.js';
import { sha256 } from '../src/kinds/identity.js';
import { type Robots, robotsFiles } from '../src/kinds/robots.js';
import type { HostRules, HostSchedule, Permit } from '../src/queues/host-schedule.js';
import { comesBack } from './run.js';

/** More than is read of a robots.txt, so that one that is too large still is one. */
const MAX_FILE_BYTES = 5 * 1024 * 1024;
/** A refusal that is younger holds for forced jobs too. */
const FORCED_AGAIN_MS = 60_000;
/** In which jobs come back that wait for a robots.txt which could not be had. */
const SPREAD_MS = 10_000;
/** A host that sends us away and says that we may come back at once is left alone for so long all the same. */
const LEAST_COOL_MS = 1_000;

export interface PolitenessOptions {
  /** Requests to a host at once. */
  readonly hostConcurrency: number;
  /** Milliseconds from one request to a host to the next. */
  readonly hostGapMs: number;
  /** Longer than any request lasts, in milliseconds. */
  readonly leaseMs: number;
  /** How long a host that has had enough of us is left alone, where it does not say, in milliseconds. */
  readonly coolMs: number;
  /** Our product token, which robots rules name; `null` passes over them. */
  readonly crawler: string | null;
}

/** Who asks: a run of a job of a tenant. */
export interface Asker {
  readonly tenantId: string;
  /** The job's id in its queue. */
  readonly jobId: string;
  readonly signal: AbortSignal;
  /** Whether a refusal by rules that are known is asked about anew. */
  readonly force?: boolean | undefined;
  /**
   * Where the job asks for a robots.txt; grows with every redirect, and is empty once it is had. Whoever keeps it can go on
   * where it was put off.
   */
  readonly robotsTrail: string[];
}

/** A robots.txt that is asked for. */
interface RobotsFile {
  readonly origin: string;
  /** Our product token. */
  readonly crawler: string;
  /** Of the origin's own host; `null` for who goes on elsewhere. */
  readonly permit: Permit | null;
}

export class Politeness {
  constructor(
    private readonly schedule: HostSchedule,
    private readonly cache: HybridCache,
    private readonly fetcher: Pick<Fetcher, 'fetch'>,
    private readonly options: PolitenessOptions,
  ) {}

  /** Our product token; `undefined` where robots rules are passed over. */
  get crawler(): string | undefined {
    return this.options.crawler ?? undefined;
  }

  /**
   * Resolves when a request to this canonical URL may begin.
   *
   * @throws {DeferredError} where it has to wait
   * @throws {RejectedError} `robots`
   * @throws {RetryableError} where robots.txt was asked for and could not be had
   */
  async admit(asker: Asker, url: string): Promise<Leave> {
    const { origin, host } = new URL(url);
    const { crawler } = this;
    if (crawler === undefined) return this.#enter(asker, host, this.#rules());
    const robots = await this.#known(asker.tenantId, origin);
    const isKnown = robots !== null && !(asker.force && isOldRefusal(robots, url, crawler));
    const isLed = asker.robotsTrail.length > 1 && asker.robotsTrail[0] === robotsUrl(origin);
    if (isLed && !isKnown) return this.#goOn(asker, url, crawler);
    await this.#forgetFile(asker, host);
    if (isKnown) return this.#enter(asker, host, this.#rules(await this.#allowedGap(asker, robots, url, crawler)));
    asker.robotsTrail.push(robotsUrl(origin));
    const before = this.#rules(robots ? crawlDelay(robots, crawler) : 0);
    const permit = await this.schedule.enter(host, asker.jobId, asker.tenantId, { ...before, most: 1 });
    try {
      const found = await this.#ask(asker, { origin, crawler, permit });
      const rules = this.#rules(await this.#gapAfter(found, url, crawler, permit));
      await permit.again(rules);
      return this.#leaving(asker, permit, rules);
    } catch (error) {
      // What another host answered, where robots.txt led, says nothing of this one.
      const isOwn = isAt(host, asker.robotsTrail.at(-1));
      if (!comesBack(error)) await this.#leaving(asker, permit, this.#oneAtATime())(isOwn ? error : undefined);
      throw error;
    }
  }

  /** Gives back what the job has booked at the URL's host, where it has no use for it any more. */
  async forget(jobId: string, url: string): Promise<void> {
    await this.schedule.leave(new URL(url).host, jobId, this.#oneAtATime());
  }

  /** Has the jobs woken that nobody woke when their turn came. @throws {QueueUnavailableError} */
  async tend(signal: AbortSignal): Promise<void> {
    await this.schedule.tend(this.#rules(), signal);
  }

  /**
   * For who was put off where robots.txt led: its turn is there, and would pass while it waited at its own host. The permit
   * that it holds at that one keeps others from asking for the same file, until the lease ends.
   */
  async #goOn(asker: Asker, url: string, crawler: string): Promise<Leave> {
    const { origin, host } = new URL(url);
    let rules = this.#oneAtATime();
    try {
      const found = await this.#ask(asker, { origin, crawler, permit: null });
      rules = this.#rules(crawlDelay(found, crawler));
      allowedGap(found, url, crawler);
    } catch (error) {
      const isOver = !comesBack(error) && !hasLost(asker.signal);
      if (isOver) await this.schedule.leave(host, asker.jobId, rules).catch(() => undefined);
      throw error;
    }
    return this.#enter(asker, host, rules);
  }

  /** Gives up what the job has booked where a robots.txt led that it needs no more. */
  async #forgetFile({ jobId, robotsTrail }: Asker, host: string): Promise<void> {
    const booked = robotsTrail.at(-1);
    robotsTrail.length = 0;
    if (booked !== undefined && !isAt(host, booked)) await this.forget(jobId, booked).catch(() => undefined);
  }

  /**
   * Of a job that is refused or put off: it may have booked while the rules were not known, and the next one shall have
   * that. Only who asked for robots.txt in vain has spent an attempt; until somebody asks again, the others wait.
   */
  async #allowedGap({ jobId }: Asker, robots: Robots, url: string, crawler: string): Promise<number> {
    try {
      return allowedGap(robots, url, crawler);
    } catch (error) {
      await this.forget(jobId, url).catch(() => undefined);
      if (error instanceof RetryableError) throw new DeferredError(comeBackAfter(error), error.message);
      throw error;
    }
  }

  /** Where the host's own delay is not known, and no gap of ours would hold back all who could go at once. */
  #oneAtATime(): HostRules {
    const rules = this.#rules();
    return rules.gapMs === 0 ? { ...rules, most: 1 } : rules;
  }

  /** Where the URL is not for us, whoever comes next waits for the delay all the same. */
  async #gapAfter(robots: Robots, url: string, crawler: string, permit: Permit): Promise<number> {
    try {
      return allowedGap(robots, url, crawler);
    } catch (error) {
      const gapMs = crawlDelay(robots, crawler);
      if (gapMs > 0) await permit.also(this.#rules(gapMs));
      throw error;
    }
  }

  #rules(gapMs = 0): HostRules {
    const { hostConcurrency, hostGapMs, leaseMs } = this.options;
    return { most: hostConcurrency, gapMs: Math.max(hostGapMs, gapMs), leaseMs };
  }

  async #enter(asker: Asker, host: string, rules: HostRules): Promise<Leave> {
    return this.#leaving(asker, await this.schedule.enter(host, asker.jobId, asker.tenantId, rules), rules);
  }

  async #known(tenantId: string, origin: string): Promise<Robots | null> {
    const robots = known(await this.cache.read(tenantId, robotsFiles, sha256(origin)));
    return robots && robots.expiresAt > Date.now() ? robots : null;
  }

  async #ask(asker: Asker, file: RobotsFile): Promise<Robots> {
    const { origin } = file;
    const robots = await this.#fetch(asker, file);
    await this.cache.write([entry(asker.tenantId, robotsFiles, sha256(origin), robots)], { hotWithoutDurable: true });
    asker.robotsTrail.length = 0;
    return robots;
  }

  /** RFC 9309 section 2.3.1: no file allows everything, and one that cannot be had nothing. */
  async #fetch(asker: Asker, file: RobotsFile): Promise<Robots> {
    const { origin, crawler } = file;
    const trail = asker.robotsTrail;
    try {
      const { bytes } = await this.fetcher.fetch(robotsUrl(origin), {
        signal: asker.signal,
        maxBytes: MAX_FILE_BYTES,
        trail,
        admit: (url) => this.#admitToFile(asker, file, url),
      });
      return robotsOf(origin, bytes, crawler);
    } catch (error) {
      if (error instanceof RejectedError) {
        if (error.reason === 'too-large' || error.reason === 'unsupported')
          return unreachableRobots(origin, error.message);
        // What the image would meet too says so there.
        if (error.reason === 'blocked-address' && trail.length === 1) throw error;
        return robotsOf(origin, Buffer.alloc(0), crawler);
      }
      const asItWas = error instanceof RetryableError && error.reason !== 'dns' && error.reason !== 'throttled';
      if (asItWas) return unreachableRobots(origin, error.message);
      throw error;
    }
  }

  /**
   * For the origin's own host the permit is held already. What its robots.txt leads to there (from http to https, say) is
   * asked for at once, and counts where the next gap begins.
   */
  async #admitToFile(asker: Asker, { origin, permit }: RobotsFile, url: string): Promise<Leave> {
    const rules = { ...this.#rules(), most: 1 };
    const { host } = new URL(url);
    if (!permit || !isAt(host, origin)) return this.#enter(asker, host, rules);
    if (asker.robotsTrail.length > 1) await permit.also(rules);
    return nothing;
  }

  /** Gives the permit back, unless another run of the job has it by now. Where that fails, its lease ends. */
  #leaving({ signal }: Asker, permit: Permit, rules: HostRules): Leave {
    return async (error) => {
      if (hasLost(signal)) return;
      const sentAway = error instanceof RetryableError && error.reason === 'throttled';
      const coolMs = sentAway ? this.#coolMs(error.retryAfterMs) : undefined;
      await permit.leave(rules, coolMs).catch(() => undefined);
    };
  }

  #coolMs(askedMs: number | undefined): number {
    return askedMs === undefined ? this.options.coolMs : Math.max(askedMs, LEAST_COOL_MS);
  }
}

/** Not all at once: one of them asks for robots.txt, and the others wait in its host's line, or for as long again. */
function comeBackAfter({ retryAfterMs = 0 }: RetryableError): number {
  return Math.ceil(retryAfterMs + Math.random() * SPREAD_MS) + 1;
}

/** One that many forced jobs of a host meet is asked about once. */
function isOldRefusal(robots: Robots, url: string, crawler: string): boolean {
  if (Date.now() - robots.fetchedAt < FORCED_AGAIN_MS) return false;
  try {
    allowedGap(robots, url, crawler);
    return false;
  } catch (error) {
    return error instanceof RejectedError;
  }
}

/** Whether the run has lost its job. */
function hasLost({ reason }: AbortSignal): boolean {
  return reason instanceof JobLostError;
}

const nothing: Leave = async () => undefined;

function robotsUrl(origin: string): string {
  return `${origin}/robots.txt`;
}

function isAt(host: string, url: string | undefined): boolean {
  return url !== undefined && new URL(url).host === host;
}
