/** A real browser for the tests that need one: Debian's Chromium, where it is installed. */
import { existsSync } from 'node:fs';
import { type Browser, chromium } from 'playwright-core';

const PATH = '/usr/bin/chromium';

export const hasBrowser = existsSync(PATH);

/** Without a window, a sandbox (it cannot be had as root) or calls to anybody but the page. */
export function launchBrowser(): Promise<Browser> {
  const args = [
    '--no-sandbox',
    '--disable-gpu',
    '--disable-quic',
    '--no-first-run',
    '--disable-background-networking',
    '--disable-component-update',
    '--disable-sync',
  ];
  return chromium.launch({ executablePath: PATH, headless: true, args });
}
