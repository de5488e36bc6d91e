/**
 * Loaded before everything else (`node --import`): the clock of this process is off by `CHAOS_CLOCK_SHIFT_MS`, like that
 * of a machine without NTP. What is measured and waited for (`performance.now()`, timers) goes on as it was.
 */
const shiftMs = Number(process.env.CHAOS_CLOCK_SHIFT_MS ?? 0);
const TrueDate = Date;
const now = () => TrueDate.now() + shiftMs;

globalThis.Date = new Proxy(TrueDate, {
  apply: () => new TrueDate(now()).toString(),
  construct: (target, args, made) => Reflect.construct(target, args.length > 0 ? args : [now()], made),
  get: (target, name) => (name === 'now' ? now : Reflect.get(target, name)),
});
