/** Arbitrary URLs, for fast-check: odd ones, and pairs that mean the same (WHATWG URL, RFC 3986 section 6.2.2). */
import fc from 'fast-check';

const piece = fc.oneof(
  fc.constantFrom(
    '%',
    '%2',
    '%2e',
    '%2E',
    '.',
    '..',
    '/',
    '//',
    '\\',
    '?',
    '#',
    '@',
    ':',
    '[',
    ']',
    '%41',
    '%25',
    '%00',
  ),
  fc.constantFrom('|', '^', '`', '{', '}', '"', "'", '<', ' ', '\t', 'ä', '。', '\u{1f600}', '&', '=', '+', '~', '*'),
  fc.string({ unit: 'grapheme', maxLength: 4 }),
  fc.stringMatching(/^%[0-9a-fA-F]{2}$/),
);

/** Text that is rich in what URLs trip over, to be put behind the host or in its place. */
export const anyRest = fc.array(piece, { maxLength: 12 }).map((pieces) => pieces.join(''));

type Two = fc.Arbitrary<[string, string]>;

const eitherOf = (spellings: readonly string[]): Two =>
  fc.tuple(fc.constantFrom(...spellings), fc.constantFrom(...spellings));
/** Two spellings of one of several things. */
const oneOf = (things: readonly (readonly string[])[]): Two => fc.constantFrom(...things).chain(eitherOf);
const joined = (parts: readonly Two[]): Two =>
  fc.tuple(...parts).map((pairs) => [pairs.map(([one]) => one).join(''), pairs.map(([, other]) => other).join('')]);
const severalOf = (part: Two): Two =>
  fc
    .array(part, { maxLength: 6 })
    .map((pairs) => [pairs.map(([one]) => one).join(''), pairs.map(([, two]) => two).join('')]);

const schemeAndPort = fc.constantFrom(
  { schemes: ['http:', 'HTTP:', 'hTtP:'], ports: ['', ':', ':80', ':0080'] },
  { schemes: ['https:', 'HTTPS:'], ports: ['', ':', ':443', ':00443'] },
  { schemes: ['http:', 'Http:'], ports: [':443', ':0443'] },
  { schemes: ['https:', 'Https:'], ports: [':8443', ':08443'] },
);
const hosts = oneOf([
  [
    'example.com',
    'EXAMPLE.com',
    'ＥＸＡＭＰＬＥ．ｃｏｍ',
    'example。com',
    'ex%61mple%2Ecom',
    'ex\u00adample.com',
    'example.com.',
  ],
  ['xn--bcher-kva.example', 'BÜCHER.example', 'bu\u0308cher.example', 'XN--BCHER-KVA.Example', 'b%C3%BCcher。example.'],
  [
    '93.184.216.34',
    '0x5db8d822',
    '1572395042',
    '0135.0270.0330.042',
    '93.184.55330',
    '９３.184.216.34',
    '93.184.216.34.',
  ],
  ['[2001:db8::1]', '[2001:DB8:0:0:0:0:0:1]', '[2001:0db8::0.0.0.1]', '[2001:db8::0:1]'],
]);
/** Written plainly, escaped, and escaped in lower case; stray percent signs; what is dropped. */
const characters = [
  ['a', '%61'],
  ['Z', '%5A', '%5a'],
  ['~', '%7E', '%7e'],
  ['-', '%2D', '%2d'],
  ['ä', '%C3%A4', '%c3%a4', '%C3%a4'],
  ['\u{1f600}', '%F0%9F%98%80', '%f0%9f%98%80'],
  [' ', '%20'],
  ['|', '%7C', '%7c'],
  ['{"<', '%7B%22%3C', '{%22%3c'],
  ['%zz', '%25zz'],
  ['%00', '%00\r\n'],
  ['%2F', '%2f'],
  ['%3F', '%3f'],
  ['%25', '%2\t5'],
  ['', '\t', '\n'],
  ['+'],
  [':@!$&()*,;='],
];
/** Begins and ends with a letter: it is no dot segment, and no blank of it stands at the end of a URL. */
const segment = joined([
  eitherOf(['/s', '\\s', '/./s', '/x/../s', '/%2e/s', '\\x/.%2E\\s']),
  severalOf(oneOf(characters)),
  eitherOf(['e']),
]);
const query = joined([
  eitherOf(['?']),
  severalOf(oneOf([...characters, ["'", '%27'], ['?'], ['/../'], ['[', '%5B', '%5b']])),
  eitherOf(['e']),
]);
const none = eitherOf(['']);

/** Two URLs that are one. */
export const twoSpellings: Two = schemeAndPort.chain(({ schemes, ports }) =>
  joined([
    eitherOf(['', ' ', '\n\u0000']),
    eitherOf(schemes),
    eitherOf(['//', '/', '', '///', '\\\\', '/\t/']),
    eitherOf(['', '@', ':@']),
    hosts,
    eitherOf(ports),
    severalOf(segment),
    fc.oneof(none, query),
    eitherOf(['', '#', '#part', '#?/%']),
    eitherOf(['', ' ', '\t\u0000']),
  ]),
);
