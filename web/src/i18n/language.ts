/** The language of a page, and how its texts are filled in. Each page has texts of its own. */
import { computed, ref } from "vue";
import { lasting } from "../storage";

export type Language = "en" | "zh";
export type Parameters = Record<string, string | number>;
type Counted<Key extends string> = {
  [K in Key]: K extends `${infer Base}.one` ? (`${Base}.other` extends Key ? Base : never) : never;
}[Key];

const KEPT = "redeem.language";

function first(): Language {
  const chosen = new URLSearchParams(location.search).get("lang") ?? lasting.read(KEPT) ?? navigator.language;
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
  lasting.write(KEPT, next);
  tellDocument();
}

export function tellDocument(): void {
  document.documentElement.lang = language.value === "zh" ? "zh-CN" : "en";
}

/** What a page says: `t` for one text, `tn` for one or many. */
export function speaking<Key extends string>(texts: Record<Language, Record<Key, string>>) {
  /** The text of a key, with its {parameters} filled in. */
  function t(key: Key, parameters: Parameters = {}): string {
    return texts[language.value][key].replace(/\{(\w+)\}/g, (whole, name: string) => String(parameters[name] ?? whole));
  }

  /** One or many: `key.one` for 1, else `key.other`; {n} is the number as people write it. */
  function tn(key: Counted<Key>, n: number, parameters: Parameters = {}): string {
    const form = new Intl.PluralRules(language.value).select(n) === "one" ? "one" : "other";
    return t(`${key}.${form}` as Key, { n: new Intl.NumberFormat(locale.value).format(n), ...parameters });
  }

  return { t, tn };
}
