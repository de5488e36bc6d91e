/** A real browser, Debian's Chromium: installed, or the tests that want it fail. */
import { existsSync } from 'node:fs';
import { type Browser, chromium } from 'playwright-core';

const PATH = '/usr/bin/chromium';

/** Without a window, a sandbox (it cannot be had as root) or calls to anybody but the page. */
export async function launchBrowser(): Promise<Browser> {
  if (!existsSync(PATH)) throw new Error('apt-get install -y --no-install-recommends chromium');
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
