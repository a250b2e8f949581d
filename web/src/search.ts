/** The one search box. What is typed may be a code: it stays in memory, and goes out in a body only. */
import { ref, shallowRef } from "vue";
import type { Router } from "vue-router";
import { call, get, Problem, type Schemas } from "./api/client";
import { asProblem } from "./explain";

export interface CodeName {
  campaign: string;
  batch: number;
  serial: number;
  last4: string;
}

export type Found =
  | { kind: "code"; code: CodeName }
  | { kind: "last4"; code: CodeName & { events: number; last_event_at: string } }
  | { kind: "redemption"; redemption: Schemas["Record"] }
  | { kind: "hold"; hold: Schemas["HoldRecord"] }
  | { kind: "order"; order: string; events: number }
  | { kind: "user"; user: string };

/** What is being looked for; a reload forgets it. */
export const text = ref("");
export const problem = shallowRef<Problem | null>(null);
export const found = shallowRef<Found[] | null>(null);

const PAGES: [RegExp, string][] = [
  [/^cmp_\d+$/, "campaign"],
  [/^wh_\d+$/, "webhook"],
];

export async function find(typed: string, router: Router): Promise<void> {
  const wanted = typed.trim();
  for (const [pattern, name] of PAGES) {
    if (pattern.test(wanted)) return void (await router.push({ name, params: { id: wanted } }));
  }
  text.value = wanted;
  found.value = null;
  problem.value = null;
  await router.push({ name: "search" });
  await look();
  const [only, other] = (found.value as Found[] | null) ?? [];
  if (!only || other || wanted !== text.value) return;
  if (only.kind === "order") await router.replace({ name: "order", params: { order: only.order } });
  else if (only.kind === "user") await router.replace({ name: "user", params: { user: only.user } });
  else if (only.kind === "redemption") await router.replace({ name: "redemption", params: { id: only.redemption.id } });
}

export async function look(): Promise<void> {
  const wanted = text.value;
  problem.value = null;
  try {
    const items = await named(wanted);
    if (wanted === text.value) found.value = items;
  } catch (error) {
    if (wanted === text.value) problem.value = asProblem(error);
  }
}

async function named(wanted: string): Promise<Found[]> {
  try {
    return (await call<{ items: Found[] }>("POST", "/v1/search", { body: { text: wanted } })).items;
  } catch (error) {
    if (!isMissing(error)) throw error;
    return await byOlderCalls(wanted);
  }
}

/** Whether an engine does not have a call: while it is updated, older workers answer as well. */
export function isMissing(error: unknown): boolean {
  return error instanceof Problem && error.status === 404 && error.code === "not_found";
}

/** What may be a code is asked for as a code only: the other calls have what they look for in their addresses. */
async function byOlderCalls(wanted: string): Promise<Found[]> {
  try {
    const { campaign, code } = await call<Schemas["CodeCheck"]>("POST", "/v1/codes/check", { body: { code: wanted } });
    return [{ kind: "code", code: { campaign, batch: 0, serial: 0, last4: code.slice(-4) } }];
  } catch (error) {
    if (!(error instanceof Problem && ["code_malformed", "code_not_found", "malformed_request"].includes(error.code))) throw error;
  }
  if (/^(?=.*\d)[0-9a-z\s._-]{12,64}$/i.test(wanted) && !/^\d+-\d+-\d+$/.test(wanted)) return [];
  const [redemption, order, user] = await Promise.all([
    /^\d+-\d+-\d+$/.test(wanted) ? get<Schemas["Record"]>(`/v1/redemptions/${wanted}`).catch(nothing) : null,
    get<{ items: unknown[] }>("/v1/redemptions", { order: wanted, limit: 100 }),
    get<unknown>(`/v1/users/${encodeURIComponent(wanted)}`).catch(nothing),
  ]);
  return [
    ...(redemption ? [{ kind: "redemption" as const, redemption }] : []),
    ...(order.items.length ? [{ kind: "order" as const, order: wanted, events: order.items.length }] : []),
    ...(user ? [{ kind: "user" as const, user: wanted }] : []),
  ];
}

function nothing(error: unknown): null {
  if (error instanceof Problem && [400, 404].includes(error.status)) return null;
  throw error;
}
