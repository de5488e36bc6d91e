/** What the command line's options and arguments may be, as commander's parsers. All throw `InvalidArgumentError`. */
import { InvalidArgumentError } from 'commander';
import { ArgumentError } from './errors.js';
import { checkTenantId } from './kinds/kind.js';

/** A tenant's id. */
export function tenantId(text: string): string {
  try {
    return checkTenantId(text);
  } catch (error) {
    throw error instanceof ArgumentError ? new InvalidArgumentError(error.expectation) : error;
  }
}

/** A whole number that is not below the least. */
export function wholeNumberFrom(least: number): (text: string) => number {
  return (text) => {
    if (/^\d{1,9}$/.test(text) && Number(text) >= least) return Number(text);
    throw new InvalidArgumentError(`expected a whole number from ${least} on`);
  };
}
