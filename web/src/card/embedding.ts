/** The page around this one, if a shop has embedded it (`embed/redeem-card.ts` is the other side).
 *
 * The Content-Security-Policy lets only pages of the key's origins be around it. Messages are exchanged with
 * that page alone. None has a code in it.
 */
import { ref, watch } from "vue";
import { take } from "../fragment";

type Told =
  | { type: "redeem-card:ready" | "redeem-card:user-token-ended" }
  | { type: "redeem-card:size"; height: number }
  | { type: "redeem-card:redeemed"; id: string };

export const framed = window.parent !== window;
/** Says who the customer is: a token that the shop's backend has signed. */
export const userToken = ref(take("user-token"));

const around = framed ? originAround() : "";

function originAround(): string {
  const [nearest] = window.location.ancestorOrigins ?? []; // Firefox has it since 2025; the element sends a referrer
  try {
    return nearest ?? new URL(document.referrer).origin;
  } catch {
    return "";
  }
}

export function tell(message: Told): void {
  if (around) window.parent.postMessage(message, around);
}

const NEW_TOKEN_MS = 5000;

/** Ask the shop for another token, since this one is refused. Returns whether it has given one in time. */
export function newToken(): Promise<boolean> {
  if (!around) return Promise.resolve(false);
  return new Promise((resolve) => {
    const timer = setTimeout(() => finish(false), NEW_TOKEN_MS);
    const stop = watch(userToken, () => finish(true), { flush: "sync" });
    function finish(given: boolean): void {
      clearTimeout(timer);
      stop();
      resolve(given);
    }
    tell({ type: "redeem-card:user-token-ended" });
  });
}

/** Listen for the token, and keep the frame as high as the page. */
export function startEmbedding(): void {
  if (!framed) return;
  document.documentElement.dataset["framed"] = "";
  window.addEventListener("message", (event: MessageEvent<{ type?: unknown; token?: unknown } | null>) => {
    if (event.source !== window.parent || event.origin !== around) return;
    if (event.data?.type === "redeem-card:user-token" && typeof event.data.token === "string") {
      userToken.value = event.data.token;
    }
  });
  new ResizeObserver(() => tell({ type: "redeem-card:size", height: document.documentElement.offsetHeight })).observe(document.body);
  tell({ type: "redeem-card:ready" });
}
