/** Asks for the overview and has it drawn, every two seconds; less often while nobody looks or nobody answers. */
import { draw } from './draw.js';
import { ageOf } from './elements.js';

const EVERY_MS = 2_000;
const LONGEST_MS = 60_000;
/** While it does not answer: nobody should wait long once it does. */
const LONGEST_RETRY_MS = 10_000;
const DEADLINE_MS = 10_000;

const status = document.getElementById('status');
const state = document.getElementById('state');
const updated = document.getElementById('updated');

let waitMs = EVERY_MS;
let timer;
let asking = false;
/** When an answer last came, by this browser's clock. */
let answeredAt = null;

async function ask() {
  clearTimeout(timer);
  if (asking) return;
  asking = true;
  try {
    const response = await fetch('/v1/overview', { signal: AbortSignal.timeout(DEADLINE_MS), cache: 'no-store' });
    if (response.status === 401) throw new Error('The server asks for a token: load this page anew');
    if (!response.ok) throw new Error(`The server answers with ${response.status}`);
    const overview = await response.json();
    document.getElementById('main').hidden = false;
    answeredAt = Date.now();
    drawn(overview);
    say('live', 'Live');
    waitMs = document.hidden ? Math.min(2 * waitMs, LONGEST_MS) : EVERY_MS;
  } catch (error) {
    // The words of a browser for a lost connection differ, and help nobody.
    const known = error instanceof Error && /^(The server|This page) /.test(error.message);
    say('silent', known ? error.message : 'The server does not answer');
    waitMs = Math.min(2 * waitMs, document.hidden ? LONGEST_MS : LONGEST_RETRY_MS);
  } finally {
    asking = false;
    timer = setTimeout(ask, waitMs);
  }
}

/** After an update of the service this page may be older than what it is given. */
function drawn(overview) {
  try {
    draw(overview);
  } catch (error) {
    console.error(error);
    throw new Error('This page does not know what to make of the answer: load it anew');
  }
}

/** Said aloud by a screen reader when it changes, and not every two seconds. */
function say(name, words) {
  status.dataset.state = name;
  document.body.classList.toggle('stale', name === 'silent');
  if (state.textContent !== words) state.textContent = words;
  tick();
}

/** What is relative to now, between two answers. */
function tick() {
  if (answeredAt !== null) {
    const clock = new Date(answeredAt).toLocaleTimeString('en-GB');
    updated.textContent = `· updated ${clock}, ${ageOf(answeredAt)}`;
  }
  for (const element of document.querySelectorAll('time[data-at]')) {
    const age = ageOf(Number(element.dataset.at));
    if (element.textContent !== age) element.textContent = age;
  }
}

document.addEventListener('visibilitychange', () => {
  if (document.hidden) return;
  waitMs = EVERY_MS;
  ask();
});
setInterval(tick, 1_000);
ask();
