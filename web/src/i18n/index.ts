/** The texts of the dashboard. Both languages are written by hand; the type checker demands each text in each. */
import { en } from "./en";
import { type Parameters, speaking } from "./language";
import { zh } from "./zh";

export { choose, language, locale, tellDocument } from "./language";

export type Key = keyof typeof en;

export const { t, tn } = speaking<Key>({ en, zh });

/** The text of a key that is made from data, or the fallback where there is none. */
export function named(prefix: string, name: string, fallback = name, parameters: Parameters = {}): string {
  const key = `${prefix}.${name}`;
  return key in en ? t(key as Key, parameters) : fallback;
}
