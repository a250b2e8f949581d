/** What a customer does, step by step: types a code, sees the card, redeems it, sees that it worked. */
import { computed, ref, shallowRef } from "vue";
import { Problem } from "../api/client";
import type { Parameters } from "../i18n/language";
import { type Check, type Receipt, checkCode, redeemCode } from "./calls";
import { lastFour, symbolsOf } from "./codes";
import { tell } from "./embedding";
import { attempt, dropReceipt, keepReceipt, markSent, receipt, renew } from "./kept";
import type { CardKey } from "./texts";

export interface Trouble {
  text: CardKey;
  parameters?: Parameters;
  /** Until then another try is refused; in milliseconds, as `Date.now()`. */
  until?: number;
}

const WAIT_FIRST_MS = 1000;
const WAIT_MAX_MS = 15_000;

/** As it was typed. It is in memory only, and forgotten as soon as it is redeemed. */
export const code = ref("");
export const card = shallowRef<Check | null>(null);
export const trouble = shallowRef<Trouble | null>(null);
export const busy = ref(false);
const sending = ref(false);
/** The answer to a redemption did not arrive: it is asked for again, with the same key. */
export const lost = ref(false);
/** A redemption of this tab was sent before the page was loaded, and its answer is not known. */
export const unsettled = ref(attempt().sent !== null && receipt.value === null);

export const step = computed(() => {
  if (receipt.value) return "done";
  if (sending.value) return "sending";
  return card.value ? "card" : "enter";
});

/** Show what a code is worth; nothing is consumed. */
export async function lookUp(): Promise<void> {
  const before = attempt().sent;
  if (before?.last4 === lastFour(symbolsOf(code.value))) {
    await redeem(before.amount); // it may be spent by that very try
    return;
  }
  if (before) renew(); // another code
  busy.value = true;
  trouble.value = null;
  try {
    card.value = await checkCode(code.value);
  } catch (error) {
    trouble.value = troubleOf(error);
  }
  busy.value = false;
}

/** Redeem the code. Asks with the same key until the outcome is known. */
export async function redeem(amount: number | null): Promise<void> {
  if (sending.value) return;
  const { key } = markSent(lastFour(symbolsOf(code.value)), amount);
  sending.value = true;
  trouble.value = null;
  for (let wait = WAIT_FIRST_MS; sending.value; wait = Math.min(2 * wait, WAIT_MAX_MS)) {
    try {
      succeed(await redeemCode(code.value, amount, key));
    } catch (error) {
      if (isUnknown(error)) {
        lost.value = true;
        await pause(wait);
      } else fail(error);
    }
  }
  lost.value = false;
}

function succeed(done: Receipt): void {
  renew();
  keepReceipt(done);
  tell({ type: "redeem-card:redeemed", id: done.id });
  forget();
  sending.value = false;
}

function fail(error: unknown): void {
  sending.value = false;
  const found = troubleOf(error);
  if (!found.until) renew(); // the refusal is the answer to this key; too many tries is none
  if (found.text === "trouble.cannot") card.value = null;
  trouble.value = found;
  unsettled.value = false;
}

/** Begin again, with an empty field. */
export function another(): void {
  dropReceipt();
  forget();
  trouble.value = null;
}

function forget(): void {
  code.value = "";
  card.value = null;
  unsettled.value = false;
}

/** Whether the redemption may have been done, by this request or an earlier one. */
function isUnknown(error: unknown): boolean {
  if (!(error instanceof Problem)) return false;
  if (error.status === 503 && error.code !== "outcome_unknown") return lost.value; // this one was certainly not
  return error.status === 0 || error.status >= 500;
}

function troubleOf(error: unknown): Trouble {
  if (!(error instanceof Problem)) throw error;
  if (error.code === "too_many_attempts") {
    return { text: "trouble.tooMany", until: Date.now() + 1000 * (error.document.retry_after_s ?? 1) };
  }
  if (error.code === "invalid_user_token") return { text: "trouble.signedOut" };
  if (error.status === 404 || error.status === 400) return { text: "trouble.cannot" };
  if (error.status === 0) return { text: "trouble.offline" };
  if (error.status === 503) return { text: "trouble.busy" };
  if (error.status === 401 || error.status === 403) return { text: "trouble.page" };
  return { text: "trouble.failed", parameters: { id: error.requestId ?? "–" } };
}

let goOn: () => void = () => undefined;

/** Ask again at once, in place of waiting. */
export function checkNow(): void {
  goOn();
}

function pause(ms: number): Promise<void> {
  return new Promise((resolve) => {
    const timer = setTimeout(resolve, ms);
    goOn = () => {
      clearTimeout(timer);
      resolve();
    };
    window.addEventListener("online", goOn, { once: true });
  });
}
