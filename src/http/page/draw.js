/** Draws an overview. */
import { ageOf, clockOf, count, duration, element, percent, rateOf, svg, whole } from './elements.js';
import { drawImages } from './images.js';

const KINDS = {
  face_embedding: 'Face embeddings',
  face_detection: 'Face detections',
  perceptual_hash: 'Perceptual hashes',
  search_results: 'Search results',
  crawl_url: 'URLs',
  crawl_content: 'Contents',
  rejection: 'Refusals',
  robots: 'Robots rules',
};
const OUTCOMES = {
  stored: 'Stored',
  'skipped url': 'Skipped, URL known',
  'skipped content': 'Skipped, content known',
  embedded: 'Embedded',
  cached: 'Known already',
};
const UNCOUNTED = '; older ones are not counted';
const STORES = { redis: 'Redis cache', postgres: 'PostgreSQL', queue: 'Queues' };

export function draw(overview) {
  drawHead(overview);
  drawTiles(overview);
  drawRun('outcomes', overview.crawl, 'crawl jobs', overview.tenants);
  drawRun('embedding', overview.embedding, 'embedding jobs', overview.tenants);
  drawFailures(overview);
  drawTiers(overview);
  drawLookups(overview.lookups);
  drawQueues(overview.queues);
  drawImages(overview);
  drawTroubles(overview.troubles);
}

function drawHead({ tenants }) {
  document.getElementById('scope').textContent = tenants
    ? `${tenants.length === 1 ? 'tenant' : 'tenants'} ${tenants.join(', ')}`
    : 'all tenants';
  document.getElementById('elsewhere').hidden = tenants !== null;
}

function drawTiles({ crawl, embedding, holdings, faces, queues }) {
  tile('rate', crawl, () => [rateOf(crawl.perSecond), `over ${spanOf(crawl)}`]);
  drawCurve(crawl.curve ?? []);
  tile('stored', holdings, () => [
    amount(holdings, 'images'),
    `at ${amount(holdings, 'urls', 'URL')}; ${amount(holdings, 'refusals', 'refusal')} remembered`,
  ]);
  tile('faces', faces, () => {
    if (faces.exact) {
      return [whole.format(faces.faces), `in ${whole.format(faces.withFaces)} of ${count(faces.images, 'image')}`];
    }
    return [
      orMore(whole.format(faces.faces)),
      `in ${whole.format(faces.withFaces)} of the ${whole.format(faces.images)} images that were looked at; there are more`,
    ];
  });
  const depth = document.getElementById('depth');
  depth.hidden = queues === undefined;
  if (queues === undefined) return;
  tile('depth', queues, () => {
    const waiting = queues.reduce((sum, queue) => sum + queue.waiting, 0);
    const delayed = queues.reduce((sum, queue) => sum + queue.delayed, 0);
    const oldest = Math.max(...queues.map((queue) => queue.oldestWaitingSeconds));
    const later = delayed > 0 ? `; ${whole.format(delayed)} delayed` : '';
    const paused = queues.filter((queue) => queue.paused).map(({ queue }) => `; ${queue} is paused`);
    const since = waiting > 0 ? `the oldest for ${duration(oldest)}` : 'none waits';
    return [whole.format(waiting), [since, later, ...paused].join('')];
  });
}

/** A holding, with a mark where it is a lower bound or an estimate. */
function amount(holdings, name, noun) {
  const number = whole.format(holdings[name]);
  const marked = holdings.about.includes(name) ? `about ${number}` : number;
  const told = holdings.atLeast.includes(name) ? orMore(number) : marked;
  return noun ? `${told} ${noun}${holdings[name] === 1 ? '' : 's'}` : told;
}

function orMore(number) {
  return `${number} or more`;
}

function tile(id, part, describe) {
  const root = document.getElementById(id);
  const [figure, about] = part.error === undefined ? describe() : ['–', `not available: ${part.error}`];
  root.querySelector('.figure').textContent = figure;
  root.querySelector('.about').textContent = about;
}

function drawCurve(points) {
  const highest = Math.max(1, ...points.filter((point) => point !== null));
  const y = (point) => (9.5 - (9 * point) / highest).toFixed(2);
  const known = points.map((point, x) => [x, point]).filter(([, point]) => point !== null);
  const line = known.map(([x, point], i) => `${i === 0 ? 'M' : 'L'}${x} ${y(point)}`).join('');
  const area = known.length > 1 ? `${line}L${known.at(-1)[0]} 10L${known[0][0]} 10Z` : '';
  document.querySelector('.curve .line').setAttribute('d', line);
  document.querySelector('.curve .area').setAttribute('d', area);
}

function drawRun(id, run, jobs, tenants) {
  panel(id, [run, tenants], () => {
    if (run.jobs === 0) {
      const when = run.more && tenants ? `in ${spanOf(run)}` : 'lately';
      return [`None ended ${when}${run.more ? UNCOUNTED : ''}.`, []];
    }
    const rows = run.outcomes.map(({ outcome, reason, jobs: part }) => ({
      name: outcomeName(outcome, reason),
      of: part,
      sort: outcome,
    }));
    const since = run.since === null ? '' : `, since ${clockOf(run.since)}`;
    const shown = `${whole.format(run.jobs)} ${run.jobs === 1 ? jobs.slice(0, -1) : jobs}`;
    if (!run.more) return [`Of ${shown} that ended${since}.`, bars(rows)];
    const newest = tenants ? `${shown} of ${spanOf(run)}` : `the newest ${shown}`;
    return [`Of ${newest}${since}${UNCOUNTED}.`, bars(rows)];
  });
}

function spanOf({ overSeconds }) {
  return overSeconds >= 60 ? 'the last minute' : `the last ${Math.round(overSeconds)} s`;
}

function outcomeName(outcome, reason) {
  if (outcome === 'rejected') return `Rejected: ${reason}`;
  const name = reason === null ? outcome : `${outcome} ${reason}`;
  return OUTCOMES[name] ?? name;
}

function drawFailures({ failures, queues }) {
  const total = Array.isArray(queues) ? queues.reduce((sum, queue) => sum + queue.failed, 0) : null;
  panel('failures', [failures, total], () => {
    if (failures.jobs === 0) {
      return [
        failures.more ? `None among the newest in the failed set${UNCOUNTED}.` : 'No job is in the failed set.',
        [],
      ];
    }
    const of = failures.more && total !== null ? ` of ${whole.format(total)}` : '';
    const newest = failures.more ? 'the newest ' : '';
    const uncounted = failures.more && total === null ? UNCOUNTED : '';
    const about = `By class, ${newest}${whole.format(failures.jobs)}${of} in the failed set${uncounted}.`;
    const rows = failures.reasons.map(({ queue, reason, jobs }) => ({
      name: queue === 'crawl' ? reason : `${reason} (${queue})`,
      of: jobs,
      sort: 'failed',
    }));
    return [about, bars(rows)];
  });
}

/** A table whose numbers have bars beside them; the numbers alone are read aloud. */
function bars(rows) {
  const sum = rows.reduce((total, row) => total + row.of, 0);
  const highest = Math.max(...rows.map((row) => row.of));
  const body = rows.map(({ name, of, sort }) =>
    element('tr', {}, [
      element('th', { scope: 'row' }, [name]),
      element('td', { class: 'bar', 'aria-hidden': 'true' }, [bar([[sort, of / highest]])]),
      element('td', { class: 'number' }, [whole.format(of)]),
      element('td', { class: 'number share' }, [percent.format(of / sum)]),
    ]),
  );
  return [element('table', { class: 'bars' }, [element('tbody', {}, body)])];
}

/** Shares of a whole side by side, each in the colour of its class. */
function bar(parts) {
  let x = 0;
  const drawn = parts.map(([name, share]) => {
    const rect = svg('rect', { class: name, x: 100 * x, y: 0, width: 100 * share, height: 10 });
    x += share;
    return rect;
  });
  return svg('svg', { viewBox: '0 0 100 10', preserveAspectRatio: 'none', 'aria-hidden': 'true' }, drawn);
}

function drawTiers({ tiers, replayPending }) {
  if (!changed('tiers', [tiers, replayPending])) return;
  const items = tiers.map(({ name, state, detail }) =>
    element('li', { 'data-state': state, 'data-store': name }, [
      element('span', { class: 'dot', 'aria-hidden': 'true' }, []),
      element('span', { class: 'name' }, [STORES[name] ?? name]),
      element('span', { class: 'state' }, [state]),
      ...(detail ? [element('span', { class: 'detail' }, [detail])] : []),
    ]),
  );
  if (typeof replayPending === 'number' && replayPending > 0) {
    const words = `${count(replayPending, 'write')} to be replayed to PostgreSQL`;
    items.push(element('li', { 'data-state': 'down' }, [element('span', { class: 'detail' }, [words])]));
  }
  document.querySelector('#tiers .content').replaceChildren(element('ul', { class: 'stores' }, items));
}

function drawLookups(lookups) {
  document.getElementById('lookups').hidden = lookups === undefined;
  if (lookups === undefined) return;
  panel('lookups', [lookups], () => {
    const about =
      lookups.minutes === null
        ? 'Look-ups of the process that serves this page since it began; without Redis, others tell nobody of theirs.'
        : `Look-ups of all processes within the last ${lookups.minutes} minutes.`;
    const rows = Object.entries(lookups.byKind)
      .map(([kind, counts]) => [KINDS[kind] ?? kind, counts, sumOf(counts)])
      .filter(([, , asked]) => asked > 0);
    if (rows.length === 0) return [about, [element('p', { class: 'none' }, ['None.'])]];
    const total = { redis_hit: 0, postgres_hit: 0, miss: 0, error: 0 };
    for (const [, counts] of rows) for (const name of Object.keys(total)) total[name] += counts[name];
    if (rows.length > 1) rows.push(['All', total, sumOf(total)]);
    const heads = ['Kind', '', 'Redis', 'PostgreSQL', 'Miss', 'Hit rate'];
    const withErrors = total.error > 0;
    if (withErrors) heads.splice(5, 0, 'Unknown');
    return [
      about,
      table(
        'lookups',
        heads,
        rows.map((row) => lookupRow(row, withErrors)),
      ),
    ];
  });
}

function lookupRow([name, counts, asked], withErrors) {
  const parts = ['redis_hit', 'postgres_hit', 'miss', 'error'].map((result) => [result, counts[result] / asked]);
  const numbers = [counts.redis_hit, counts.postgres_hit, counts.miss, ...(withErrors ? [counts.error] : [])];
  const rate = (counts.redis_hit + counts.postgres_hit) / asked;
  return [name, bar(parts), ...numbers.map((number) => whole.format(number)), percent.format(rate)];
}

function drawQueues(queues) {
  document.getElementById('queues').hidden = queues === undefined;
  if (queues === undefined) return;
  panel('queues', [queues], () => {
    const heads = ['Queue', 'Waiting', 'Oldest', 'Active', 'Delayed', 'Done', 'Failed'];
    const rows = queues.map((one) => [
      one.paused ? `${one.queue} (paused)` : one.queue,
      whole.format(one.waiting),
      one.waiting > 0 ? duration(one.oldestWaitingSeconds) : '–',
      ...[one.active, one.delayed, one.completed, one.failed].map((number) => whole.format(number)),
    ]);
    return ['Of all tenants. Done jobs are kept for an hour.', table('queues', heads, rows)];
  });
}

function table(name, heads, rows) {
  const head = heads.map((text) => (text ? element('th', { scope: 'col' }, [text]) : element('td', {}, [])));
  const body = rows.map(([first, ...rest]) =>
    element('tr', {}, [
      element('th', { scope: 'row' }, [first]),
      ...rest.map((cell) => element('td', { class: cell instanceof Element ? 'bar' : 'number' }, [cell])),
    ]),
  );
  return [
    element('table', { class: name }, [element('thead', {}, [element('tr', {}, head)]), element('tbody', {}, body)]),
  ];
}

function drawTroubles(troubles) {
  panel('troubles', [troubles], () => {
    if (troubles.length === 0) return ['None lately.', []];
    const items = troubles.map(({ outcome, reason, subject, detail, at, queue }) =>
      element('li', {}, [
        element('span', { class: `reason ${outcome}` }, [`${reason}`]),
        element('span', { class: 'subject' }, [subject || 'unknown']),
        element('span', { class: 'detail' }, [detail ?? '']),
        element('span', { class: 'when' }, [
          `${outcome}${queue === 'crawl' ? '' : ` (${queue})`}, `,
          element('time', { 'data-at': at, datetime: new Date(at).toISOString() }, [ageOf(at)]),
        ]),
      ]),
    );
    return ['', [element('ul', { class: 'troubles' }, items)]];
  });
}

const drawn = new Map();

/** `facts` begins with the part. */
function panel(id, facts, describe) {
  if (!changed(id, facts)) return;
  const [part] = facts;
  const root = document.getElementById(id);
  const [about, content] = part.error === undefined ? describe() : [`Not available: ${part.error}`, []];
  root.querySelector('.about').textContent = about;
  root.querySelector('.content').replaceChildren(...content);
}

/** Since the panel was drawn. It is left alone while nothing changes, so that what somebody has selected stays selected. */
function changed(id, facts) {
  const seen = JSON.stringify(facts);
  if (drawn.get(id) === seen) return false;
  drawn.set(id, seen);
  return true;
}

function sumOf(counts) {
  return Object.values(counts).reduce((sum, one) => sum + one, 0);
}
