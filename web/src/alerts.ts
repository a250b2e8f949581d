/** How many alerts of the guard nobody has seen yet, for the header; asked for while somebody looks. */
import { ref } from "vue";
import { get, type Page, type Schemas } from "./api/client";
import { may } from "./session";

const AGAIN_MS = 30_000;
export const COUNTED_MAX = 100;
/** At most `COUNTED_MAX`: then there may be more. */
export const openAlerts = ref(0);
let timer: ReturnType<typeof setInterval> | undefined;

export async function countAlerts(): Promise<void> {
  if (!may.value("admin") || document.hidden) return;
  const found = await get<Page<Schemas["Alert"]>>("/v1/alerts", { state: "open", limit: COUNTED_MAX }).catch(() => null);
  if (found) openAlerts.value = found.items.length;
}

export function watchAlerts(): void {
  void countAlerts();
  timer = setInterval(() => void countAlerts(), AGAIN_MS);
}

export function forgetAlerts(): void {
  clearInterval(timer);
  openAlerts.value = 0;
}
