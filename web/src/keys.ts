/** Names of API keys, for those who may read them: "shop" says more than key_123ab10419ee. */
import { shallowRef } from "vue";
import { get, type Page, type Schemas } from "./api/client";
import { t } from "./i18n";
import { may } from "./session";

const names = shallowRef(new Map<string, string>());
let asked = false;

async function load(): Promise<void> {
  let after: string | null = null;
  const found = new Map<string, string>();
  do {
    const page: Page<Schemas["ApiKey"]> = await get("/v1/keys", { after, limit: 200 });
    for (const key of page.items) found.set(key.id, key.name);
    after = page.next;
  } while (after && found.size < 1000);
  names.value = found;
}

export function actorName(actor: string): string {
  if (actor === "cli") return t("actor.cli");
  if (!asked && may.value("admin")) {
    asked = true;
    load().catch(() => (asked = false));
  }
  return names.value.get(actor) ?? actor;
}

export function forgetNames(): void {
  asked = false;
}
