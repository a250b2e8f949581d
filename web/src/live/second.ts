/** What `GET /admin/live` sends (docs/dashboard.md), and the form in which these pages keep it. */
export const KEPT_S = 900;

export interface Health {
  level: "ok" | "warning" | "failure";
  words: string[];
}

/** A campaign that moves. `seconds_left`: until its stock is gone at this rate. */
export interface Moving {
  id: string;
  name: string;
  redeemed: number;
  rate: number;
  issued: number;
  used: number;
  stock: number | null;
  stock_left: number | null;
  seconds_left: number | null;
}

/** One second; null where no worker counted. */
export interface Second {
  second: number;
  redeemed: number | null;
  refused: Record<string, number> | null;
  p99_ms: number | null;
  lag_s: number | null;
  workers: number | null;
  /** Redemptions by campaign. */
  by: Record<string, number>;
}

export interface SecondEvent extends Omit<Second, "by"> {
  redis_memory_percent: number | null;
  campaigns: Moving[];
  health: Health;
}

/** The last 15 minutes by columns, from `first` to `last`. */
export interface HistoryEvent {
  first: number;
  last: number;
  redeemed: (number | null)[];
  refused: Record<string, (number | null)[]>;
  p99_ms: (number | null)[];
  lag_s: (number | null)[];
  workers: (number | null)[];
  campaigns: Record<string, (number | null)[]>;
}

export function secondsOf(history: HistoryEvent): Second[] {
  const at = (columns: Record<string, (number | null)[]>, place: number) =>
    Object.fromEntries(Object.entries(columns).map(([name, column]) => [name, column[place] ?? 0]));
  return history.redeemed.map((redeemed, place) => ({
    second: history.first + place,
    redeemed,
    refused: redeemed === null ? null : at(history.refused, place),
    p99_ms: history.p99_ms[place] ?? null,
    lag_s: history.lag_s[place] ?? null,
    workers: history.workers[place] ?? null,
    by: at(history.campaigns, place),
  }));
}

export function secondOf(event: SecondEvent): Second {
  const by = Object.fromEntries(event.campaigns.map(({ id, redeemed }) => [id, redeemed]));
  const { second, redeemed, refused, p99_ms, lag_s, workers } = event;
  return { second, redeemed, refused, p99_ms, lag_s, workers, by };
}

/** Refusals by rule are amber, faults and attacks red. */
const FAULTS = new Set([
  ...["overloaded", "store_unavailable", "store_behind", "outcome_unknown", "internal_error", "blocked"],
  ...["too_many_attempts", "code_not_found", "code_malformed", "unauthenticated", "malformed_request"],
]);

export function isFault(reason: string): boolean {
  return FAULTS.has(reason);
}

export function sum(counts: Record<string, number> | null): number | null {
  return counts && Object.values(counts).reduce((total, count) => total + count, 0);
}
