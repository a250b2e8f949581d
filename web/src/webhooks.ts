import type { Schemas } from "./api/client";

/** An endpoint's state as one word: disabled, failing or enabled. */
export function webhookState({ enabled, failures }: Schemas["Webhook"]): string {
  if (!enabled) return "disabled";
  return failures > 0 ? "failing" : "enabled";
}
