/** The gallery: a card for each image, its thumbnail with the faces' boxes, and links to what looks alike. */
import { ageOf, count, element, svg } from './elements.js';

/** Cards by what they show, so that one that a keyboard is on stays where it is. */
const cards = new Map();

export function drawImages({ images, tenants, model }) {
  const root = document.getElementById('images');
  const list = root.querySelector('.content');
  const failed = images.error !== undefined;
  const none = failed ? `Not available: ${images.error}` : 'No image is known yet.';
  root.querySelector('.about').textContent = failed || images.length === 0 ? none : `Newest first, faces by ${model}.`;
  if (failed) return;
  const keys = new Set(images.map(keyOf));
  for (const [key, { card }] of cards) {
    if (keys.has(key)) continue;
    card.remove();
    cards.delete(key);
  }
  let next = null;
  for (const image of images.toReversed()) {
    const card = cardOf(image, tenants === null || tenants.length > 1);
    // Moving an element takes the keyboard off it: only what is not in its place is moved.
    if (card.parentNode !== list || card.nextSibling !== next) list.insertBefore(card, next);
    next = card;
  }
}

function keyOf({ tenantId, contentHash }) {
  return `${tenantId} ${contentHash}`;
}

function cardOf(image, withTenant) {
  const key = keyOf(image);
  const drawn = JSON.stringify(image);
  const known = cards.get(key);
  if (known?.drawn === drawn) return known.card;
  const card = known?.card ?? element('li', {}, [element('a', { class: 'picture' }, [])]);
  const link = card.firstChild;
  link.href = `${pathOf(image)}/raw`;
  link.setAttribute('aria-label', `${image.address ?? image.contentHash}: ${facesIn(image)}. Opens the image.`);
  link.replaceChildren(pictureOf(image));
  const size = image.width && image.height ? `${image.width} × ${image.height}` : 'size unknown';
  const more = image.urls > 1 ? ` and ${image.urls - 1}${image.urls === 100 ? '+' : ''} more` : '';
  const parts = [
    element('p', { class: 'address', title: image.address ?? '' }, [(image.address ?? 'no URL') + more]),
    element('p', { class: 'facts' }, [`${facesIn(image)} · ${size}`]),
    element('p', { class: 'facts' }, [
      ...(withTenant ? [`${image.tenantId} · `] : []),
      element('time', { 'data-at': image.at, datetime: new Date(image.at).toISOString() }, [ageOf(image.at)]),
    ]),
  ];
  if (image.nearDuplicates.length > 0) parts.push(alike(image));
  const focused = card.contains(document.activeElement) ? document.activeElement.getAttribute('href') : null;
  card.replaceChildren(link, ...parts);
  if (focused) [...card.querySelectorAll('a')].find((one) => one.getAttribute('href') === focused)?.focus();
  cards.set(key, { card, drawn });
  return card;
}

/** The thumbnail and the boxes in one coordinate system: that of the image in full. */
function pictureOf(image) {
  const { width, height, boxes, hasThumbnail } = image;
  const [w, h] = width && height ? [width, height] : [256, 256];
  const parts = [];
  if (hasThumbnail) parts.push(svg('image', { href: `${pathOf(image)}/thumbnail`, width: w, height: h }));
  if (width && height) {
    for (const [x1, y1, x2, y2] of boxes) {
      const place = { x: x1, y: y1, width: Math.max(0, x2 - x1), height: Math.max(0, y2 - y1) };
      parts.push(svg('rect', { class: 'edge', ...place }), svg('rect', { class: 'face', ...place }));
    }
  }
  return svg('svg', { viewBox: `0 0 ${w} ${h}`, 'aria-hidden': 'true' }, parts);
}

function alike({ tenantId, nearDuplicates }) {
  const links = nearDuplicates.map(({ contentHash, distance }) => {
    const other = pathOf({ tenantId, contentHash });
    const label = `near-duplicate, ${distance} of 64 bits differ`;
    return element('a', { href: `${other}/raw`, 'aria-label': `${label}. Opens the image.`, title: label }, [
      element('img', { src: `${other}/thumbnail`, alt: '', loading: 'lazy' }, []),
      element('span', {}, [String(distance)]),
    ]);
  });
  return element('p', { class: 'alike' }, ['alike', ...links]);
}

function pathOf({ tenantId, contentHash }) {
  return `/v1/tenants/${encodeURIComponent(tenantId)}/images/${encodeURIComponent(contentHash)}`;
}

function facesIn({ faces }) {
  return faces === null ? 'not embedded yet' : faces === 0 ? 'no face' : count(faces, 'face');
}
