/** Single flight: whoever asks for what is being looked up already waits for the same answer. */
import type { Answer } from './answer.js';
import type { Lookup } from './tier.js';

/** Look-ups that were sent off together. */
interface Flight {
  lookups: Lookup[];
  /** Until they have landed. */
  answers: Promise<Answer[]> | undefined;
}

interface Place {
  readonly flight: Flight;
  readonly index: number;
}

export class Flights {
  /** Of each entry that is being looked up: where its answer will be. */
  readonly #places = new Map<string, Place>();

  constructor(
    /** Answers in the order of the look-ups. */
    private readonly ask: (lookups: readonly Lookup[]) => Promise<Answer[]>,
  ) {}

  /** The answers in the order of the look-ups. Nobody is given a value that somebody else holds too. */
  read(lookups: readonly Lookup[]): Promise<readonly Answer[]> {
    const own: Flight = { lookups: [], answers: undefined };
    const places = lookups.map((one) => this.#places.get(one.id) ?? this.#board(own, one));
    // Where all were boarded now, and none twice, the answers are in the order of the look-ups.
    const isNobodyElses = own.lookups.length === lookups.length;
    if (own.lookups.length > 0) own.answers = this.#fly(own);
    if (isNobodyElses && own.answers) return own.answers;
    const isOwn = lookups.map((one, i) => one === places[i]?.flight.lookups[places[i]?.index ?? 0]);
    return Promise.all(
      places.map(async ({ flight, index }, i) => {
        const answer = (await flight.answers)?.[index] as Answer;
        return isOwn[i] ? answer : copyOf(answer);
      }),
    );
  }

  /** Whoever asks from now on must not be told what was asked for before. */
  end(entries: readonly Lookup[]): void {
    for (const { id } of entries) this.#places.delete(id);
  }

  #board(flight: Flight, one: Lookup): Place {
    const place = { flight, index: flight.lookups.push(one) - 1 };
    this.#places.set(one.id, place);
    return place;
  }

  async #fly(flight: Flight): Promise<Answer[]> {
    try {
      return await this.ask(flight.lookups);
    } finally {
      this.#land(flight);
    }
  }

  #land(flight: Flight): void {
    for (const { id } of flight.lookups) {
      if (this.#places.get(id)?.flight === flight) this.#places.delete(id);
    }
    // A map that grows and shrinks leaves old tables of itself behind, which would hold on to the values.
    flight.lookups = [];
    flight.answers = undefined;
  }
}

/** Whoever changes a value that was given must not change another's. */
function copyOf(answer: Answer): Answer {
  return answer.state === 'hit' ? { ...answer, value: structuredClone(answer.value) } : answer;
}
