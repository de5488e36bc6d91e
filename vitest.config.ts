import { defineConfig } from 'vitest/config';

export default defineConfig({
  test: {
    include: ['test/**/*.test.ts'],
    globalSetup: ['test/support/global-stack.ts'],
    // Real servers, real kills: slow is not wrong here. What hangs is.
    testTimeout: 60_000,
    hookTimeout: 60_000,
    // Two cores: more files at once only make each other late.
    maxWorkers: 2,
    // `.ci/run` reads the counts and the failures of the second.
    // A failure names its values in the JSON too, where no diff stands beside it.
    chaiConfig: { truncateThreshold: 1_000 },
    reporters: ['default', ['json', { outputFile: '.local/test-results.json' }]],
  },
});
