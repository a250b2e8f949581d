/** What this browser keeps of a customer's redemptions, apart for each browser key. Never a code. */
import { ref } from "vue";
import { newKey } from "../api/client";
import { lasting, passing, type Shelf } from "../storage";
import { browserKey, HISTORY_MAX, type Receipt } from "./calls";
import { userToken } from "./embedding";

/** One redemption, however often it is sent. `sent`: it may have been done, and nobody knows yet. */
export interface Attempt {
  key: string;
  sent: { last4: string; amount: number | null } | null;
}

const name = (what: string): string => `redeem.card.${browserKey}.${what}`;

function read<T>(shelf: Shelf, what: string): T | null {
  try {
    return JSON.parse(shelf.read(name(what)) ?? "null") as T | null;
  } catch {
    return null;
  }
}

function write(shelf: Shelf, what: string, value: unknown): void {
  shelf.write(name(what), value === null ? null : JSON.stringify(value));
}

let current = read<Attempt>(passing, "attempt") ?? renew();

export function attempt(): Attempt {
  return current;
}

function keep(next: Attempt): Attempt {
  write(passing, "attempt", next);
  return (current = next);
}

/** Make the key of the next redemption, before anybody presses anything. */
export function renew(): Attempt {
  return keep({ key: newKey("card"), sent: null });
}

export function markSent(last4: string, amount: number | null): Attempt {
  return keep({ key: current.key, sent: { last4, amount } });
}

/** The redemption that this tab shows, also after it was loaded again. */
export const receipt = ref(read<Receipt>(passing, "receipt"));
export const history = ref(read<Receipt[]>(lasting, "history") ?? []);

export function keepReceipt(done: Receipt): void {
  receipt.value = done;
  write(passing, "receipt", done);
  if (userToken.value) return; // the engine knows what this user has redeemed; the browser may be somebody else's
  history.value = [done, ...history.value.filter((other) => other.id !== done.id)].slice(0, HISTORY_MAX);
  write(lasting, "history", history.value);
}

export function dropReceipt(): void {
  receipt.value = null;
  write(passing, "receipt", null);
}
