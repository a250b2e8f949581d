/** Who is signed in. The cookie is HttpOnly: this page only knows what the engine tells. */
import { computed, ref } from "vue";
import { call, whenSignedOut } from "./api/client";

export interface Session {
  key_id: string;
  name: string;
  scopes: string[];
  campaigns: string[] | null;
}

export const session = ref<Session | null>(null);
export const expired = ref(false);

whenSignedOut(() => {
  expired.value = session.value !== null;
  session.value = null;
});

export const may = computed(() => {
  const scopes = new Set(session.value?.scopes ?? []);
  return (scope: string) => scopes.has(scope);
});

export async function resume(): Promise<void> {
  session.value = await call<Session>("GET", "/admin/session");
}

export async function signIn(secret: { key: string } | { link: string }): Promise<void> {
  await call("POST", "/admin/session", { body: secret });
  expired.value = false;
  await resume();
}

export async function signOut(): Promise<void> {
  await call("DELETE", "/admin/session").catch(() => undefined);
  session.value = null;
}
