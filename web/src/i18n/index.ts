/** The two languages. Both are written by hand; the type checker demands each text in each. */
import { computed, ref } from "vue";
import { en } from "./en";
import { zh } from "./zh";

export type Key = keyof typeof en;
export type Language = "en" | "zh";
export type Parameters = Record<string, string | number>;

const texts: Record<Language, Record<Key, string>> = { en, zh };
const KEPT = "redeem.language";

function first(): Language {
  const chosen = localStorage.getItem(KEPT) ?? navigator.language;
  return chosen.startsWith("zh") ? "zh" : "en";
}

export const language = ref<Language>(first());

/** The locale of numbers and times: the reader's own, if it is of the language that is shown. */
export const locale = computed(() => {
  const own = navigator.languages.find((tag) => tag.startsWith(language.value));
  return own ?? (language.value === "zh" ? "zh-CN" : "en-GB");
});

export function choose(next: Language): void {
  language.value = next;
  localStorage.setItem(KEPT, next);
  tellDocument();
}

export function tellDocument(): void {
  document.documentElement.lang = language.value === "zh" ? "zh-CN" : "en";
}

/** The text of a key, with its {parameters} filled in. */
export function t(key: Key, parameters: Parameters = {}): string {
  return texts[language.value][key].replace(/\{(\w+)\}/g, (whole, name: string) => String(parameters[name] ?? whole));
}

/** The text of a key that is made from data, or the fallback where there is none. */
export function named(prefix: string, name: string, fallback = name, parameters: Parameters = {}): string {
  const key = `${prefix}.${name}`;
  return key in en ? t(key as Key, parameters) : fallback;
}

/** One or many: `key.one` for 1, else `key.other`; {n} is the number as people write it. */
export function tn(key: Counted, n: number, parameters: Parameters = {}): string {
  const form = new Intl.PluralRules(language.value).select(n) === "one" ? "one" : "other";
  return t(`${key}.${form}` as Key, { n: new Intl.NumberFormat(locale.value).format(n), ...parameters });
}

type Counted = { [K in Key]: K extends `${infer Base}.one` ? (`${Base}.other` extends Key ? Base : never) : never }[Key];
