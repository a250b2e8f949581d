/** The story of a code, an order or a redemption: its events as sentences that can be read aloud. */
import type { Schemas } from "./api/client";
import { clock, dateTime, money } from "./format";
import { t } from "./i18n";
import { actorName } from "./keys";

export type EventKind = Schemas["EventType"];

export interface Told {
  id: string;
  type: EventKind;
  at: string;
  user?: string | null;
  order?: string | null;
  amount?: number | null;
  currency?: string | null;
  actor?: string | null;
  hold?: string | null;
  redemption?: string | null;
  last4?: string;
  expires_at?: string | null;
  /** What is left on a balance code after this event. */
  left?: number;
}

export const TONES: Record<EventKind, string> = {
  redeemed: "good",
  confirmed: "good",
  adjusted: "good",
  held: "rule",
  released: "",
  expired: "",
  rolled_back: "rule",
  voided: "fault",
  unvoided: "good",
};

export function sentence(event: Told): string {
  const amount = event.amount === null || event.amount === undefined ? "" : money(event.amount, event.currency);
  const order = event.order ? t("event.forOrder", { order: event.order }) : "";
  const until =
    event.type === "held" && event.expires_at && Date.parse(event.expires_at) > Date.now()
      ? t("event.until", { time: until_(event.expires_at) })
      : "";
  const left = event.left === undefined ? "" : t("event.left", { amount: money(event.left, event.currency) });
  const by = event.actor && BY_KEY.has(event.type) ? t("event.by", { actor: actorName(event.actor) }) : "";
  const user = event.user || t("event.someone");
  const colon = amount ? t("event.amount", { amount }) : "";
  return t(`event.${event.type}`, { user, order, amount: colon, by, until, left }).trim();
}

const BY_KEY = new Set<EventKind>(["rolled_back", "voided", "unvoided", "adjusted", "released"]);

function until_(at: string): string {
  return Date.parse(at) - Date.now() < 43_200_000 ? clock(at) : dateTime(at);
}

/** A redemption's record and what happened to it since. */
export function ofRecord(record: Schemas["Record"], history: Schemas["RecordWithHistory"]["history"] = []): Told[] {
  const { id, user, order, amount, currency, actor, hold, last4 } = record;
  const type = hold ? "confirmed" : "redeemed";
  const first: Told = { id, type, at: record.redeemed_at, user, order, amount, currency, actor, hold, last4, redemption: id };
  const since = history.map((entry) => ({ ...entry, type: entry.type as EventKind, currency, user, redemption: id }));
  return [first, ...since];
}

/** A hold, and what became of it. */
export function ofHold(hold: Schemas["HoldRecord"]): Told[] {
  const { id, user, order, amount, currency, actor, last4, expires_at } = hold;
  const held: Told = { id, type: "held", at: hold.held_at, user, order, amount, currency, actor, last4, expires_at, hold: id };
  if ((hold.status !== "released" && hold.status !== "expired") || !hold.ended_at) return [held];
  return [held, { ...held, id: `${id}-end`, type: hold.status, at: hold.ended_at }];
}

export function inOrder(events: Told[]): Told[] {
  return [...events].sort((one, other) => Date.parse(one.at) - Date.parse(other.at));
}

/** Adds what is left after each event of a balance code that began with `amount`. */
export function withBalance(events: Told[], amount: number): Told[] {
  let left = amount;
  const holds = new Map<string, number>();
  return events.map((event) => {
    const moved = event.amount ?? 0;
    if (event.type === "redeemed") left -= moved;
    else if (event.type === "rolled_back" || event.type === "adjusted") left += moved;
    else if (event.type === "held") {
      left += (holds.get(event.hold ?? event.id) ?? 0) - moved; // renewed with another amount
      holds.set(event.hold ?? event.id, moved);
    } else if (event.type === "confirmed") left += (holds.get(event.hold ?? "") ?? moved) - moved;
    else if (event.type === "released" || event.type === "expired") left += holds.get(event.hold ?? "") ?? moved;
    return event.type === "voided" || event.type === "unvoided" ? event : { ...event, left };
  });
}
