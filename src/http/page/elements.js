/**
 * Elements, and numbers and times in words. Everything from the server becomes text or an attribute of an element that is
 * made here: no text is ever read as HTML.
 */

export const whole = new Intl.NumberFormat('en');
export const percent = new Intl.NumberFormat('en', { style: 'percent', maximumFractionDigits: 1 });
const SVG = 'http://www.w3.org/2000/svg';

export function element(name, attributes, children) {
  return filled(document.createElement(name), attributes, children);
}

export function svg(name, attributes, children = []) {
  return filled(document.createElementNS(SVG, name), attributes, children);
}

function filled(made, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, String(value));
  made.append(...children);
  return made;
}

export function count(number, noun) {
  return `${whole.format(number)} ${noun}${number === 1 ? '' : 's'}`;
}

export function rateOf(perSecond) {
  return perSecond >= 100 ? whole.format(Math.round(perSecond)) : perSecond.toFixed(perSecond >= 10 ? 1 : 2);
}

export function duration(seconds) {
  if (seconds < 60) return `${Math.floor(seconds)} s`;
  if (seconds < 3_600) return `${Math.floor(seconds / 60)} min`;
  if (seconds < 172_800) return `${Math.floor(seconds / 3_600)} h`;
  return `${Math.floor(seconds / 86_400)} days`;
}

/** The clocks of a server and of this browser may differ by a little. */
export function ageOf(at) {
  const seconds = Math.max(0, (Date.now() - at) / 1000);
  return seconds < 1 ? 'just now' : `${duration(seconds)} ago`;
}

export function clockOf(at) {
  const moment = new Date(at);
  const today = moment.toDateString() === new Date().toDateString();
  const clock = moment.toLocaleTimeString('en-GB');
  return today ? clock : `${moment.toLocaleDateString('en-GB', { day: 'numeric', month: 'short' })} ${clock}`;
}
