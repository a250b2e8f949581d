/** The one search box. What is typed may be a code: it stays in memory, and goes out in a body only. */
import { ref, shallowRef } from "vue";
import type { Router } from "vue-router";
import { call, type Problem, type Schemas } from "./api/client";
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
    const answer = await call<{ items: Found[] }>("POST", "/v1/search", { body: { text: wanted } });
    if (wanted === text.value) found.value = answer.items;
  } catch (error) {
    if (wanted === text.value) problem.value = asProblem(error);
  }
}
