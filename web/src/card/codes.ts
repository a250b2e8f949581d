/** The written form of codes, as `engine/codes/formats.py` reads it: what can be said before anything is sent. */
const BETWEEN = /[\s\-_.\u200b-\u200d\u2060\ufeff\u2010-\u2015\u2212]/g;
const BASE32_LENGTHS = [12, 16, 20];
const DIGITS_LENGTHS = [15, 18];
const MISSING_MAX: Record<number, number> = { 16: 2 }; // the usual length; of the others, one
const CHARACTERS_MAX = 64;
const SYMBOLS_MIN = 4;
const LAST = 4;

export type Verdict = { fits: true } | { wrong: "empty" | "symbols" | "tooShort" | "tooLong" } | { missing: number };

/** The symbols of a typed text: upper case, O as 0, I and L as 1; separators dropped, full width made plain. */
export function symbolsOf(typed: string): string {
  return typed.normalize("NFKC").replace(BETWEEN, "").toUpperCase().replace(/O/g, "0").replace(/[IL]/g, "1");
}

export function lastFour(text: string): string {
  return text.slice(-LAST);
}

/** What is wrong with a typed code, as far as a page can know. An imported code may have any form. */
export function judge(typed: string): Verdict {
  const symbols = symbolsOf(typed);
  if (!symbols) return { wrong: "empty" };
  if (typed.length > CHARACTERS_MAX) return { wrong: "tooLong" };
  if (!/^[0-9A-Z]+$/.test(symbols)) return { wrong: "symbols" };
  if (symbols.length < SYMBOLS_MIN) return { wrong: "tooShort" };
  const missing = missingIn(typed, symbols);
  return missing ? { missing } : { fits: true };
}

/** How many symbols seem to be missing from a code that is nearly as long as a minted one. */
function missingIn(typed: string, symbols: string): number {
  const lengths = /^\d+$/.test(symbols) ? [...BASE32_LENGTHS, ...DIGITS_LENGTHS] : BASE32_LENGTHS;
  if (lengths.includes(symbols.length) || endsInGroups(typed)) return 0;
  const whole = lengths.find((length) => {
    const missing = length - symbols.length;
    return missing > 0 && missing <= (MISSING_MAX[length] ?? 1);
  });
  return whole ? whole - symbols.length : 0;
}

/** Whether a text ends in the groups of a whole code; what stands before them is a prefix, such as SUMMER. */
function endsInGroups(typed: string): boolean {
  return /(^|[\s-])(\w{4}([\s-]\w{4}){2,4}|\d{5}([\s-]\d{5}){2}|\d{6}([\s-]\d{6}){2})$/.test(typed.trim());
}

/** Put a typed code into groups of four; 15 and 18 digits into three groups, as they are printed. */
export function grouped(typed: string): string {
  const symbols = typed.normalize("NFKC").replace(BETWEEN, "").toUpperCase();
  const thirds = DIGITS_LENGTHS.includes(symbols.length) && /^\d+$/.test(symbols);
  const size = thirds ? symbols.length / 3 : 4;
  return (symbols.match(new RegExp(`.{1,${size}}`, "gu")) ?? []).join("-");
}

/** Where the caret stands in the grouped text, if so many symbols stand before it. */
export function caretAfter(text: string, symbols: number): number {
  let at = 0;
  for (let seen = 0; at < text.length && seen < symbols; at++) if (text[at] !== "-") seen++;
  return at;
}

export function symbolsBefore(text: string, caret: number): number {
  return text.slice(0, caret).replace(BETWEEN, "").length;
}

/** The code in a scanned text: the text itself, or what stands behind `#code=` of an address. */
export function scannedCode(text: string): string {
  const [, fragment = ""] = text.split("#");
  return new URLSearchParams(fragment).get("code") ?? text.trim();
}
