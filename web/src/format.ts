/** Numbers, money and times as the reader's locale writes them. */
import { locale } from "./i18n/language";

export function number(value: number | null | undefined, digits = 0): string {
  if (value === null || value === undefined) return "–";
  return new Intl.NumberFormat(locale.value, { minimumFractionDigits: digits, maximumFractionDigits: digits }).format(value);
}

export function percent(share: number): string {
  return new Intl.NumberFormat(locale.value, { style: "percent", maximumFractionDigits: share < 0.1 ? 1 : 0 }).format(share);
}

/** Decimals of a currency: 2 for EUR, 0 for JPY, 3 for KWD. */
export function decimals(currency: string): number {
  try {
    return new Intl.NumberFormat("en", { style: "currency", currency }).resolvedOptions().maximumFractionDigits ?? 2;
  } catch {
    return 2;
  }
}

/** Minor units as money, exactly: no floating point in between. */
export function money(minor: number | null | undefined, currency: string | null | undefined): string {
  if (minor === null || minor === undefined) return "–";
  if (!currency) return number(minor);
  const text = plainAmount(minor, currency) as unknown as number; // format() reads a decimal string exactly
  try {
    return new Intl.NumberFormat(locale.value, { style: "currency", currency }).format(text);
  } catch {
    return `${String(text)} ${currency}`;
  }
}

/** "12.30" for 1230 EUR: what a person types. */
export function plainAmount(minor: number, currency: string): string {
  const digits = decimals(currency);
  const all = String(Math.abs(minor)).padStart(digits + 1, "0");
  const sign = minor < 0 ? "-" : "";
  return digits === 0 ? sign + all : `${sign}${all.slice(0, -digits)}.${all.slice(-digits)}`;
}

/** Minor units of what a person typed, or null if it is no amount of this currency. "5", "5.00" and "5,00" are 500 EUR. */
export function amountOf(typed: string, currency: string): number | null {
  const digits = decimals(currency);
  const found = /^(-?)(\d+)(?:[.,](\d+))?$/.exec(typed.replace(/[\s\u00a0\u202f'’]/g, ""));
  if (!found) return null;
  const [, sign, whole, fraction = ""] = found;
  if (fraction.length > digits) return null;
  const minor = Number(`${whole}${fraction.padEnd(digits, "0")}`);
  if (!Number.isSafeInteger(minor)) return null;
  return sign ? -minor : minor;
}

function moment(iso: string, options: Intl.DateTimeFormatOptions): string {
  return new Intl.DateTimeFormat(locale.value, options).format(new Date(iso));
}

export function dateTime(iso: string): string {
  return moment(iso, { dateStyle: "medium", timeStyle: "short" });
}

export function dateTimeSeconds(iso: string): string {
  return moment(iso, { dateStyle: "medium", timeStyle: "medium" });
}

export function clock(iso: string): string {
  return moment(iso, { hour: "2-digit", minute: "2-digit" });
}

/** The same time in UTC, for the pointer. */
export function utc(iso: string): string {
  return `${new Date(iso).toISOString().replace("T", " ").replace(/\.\d+Z$|Z$/, "")} UTC`;
}

export function zone(): string {
  const parts = new Intl.DateTimeFormat(locale.value, { timeZoneName: "short" }).formatToParts(new Date());
  const name = Intl.DateTimeFormat().resolvedOptions().timeZone;
  return `${name} (${parts.find((part) => part.type === "timeZoneName")?.value ?? ""})`;
}

/** "3 days", "2 h", "5 min" of a duration, in the reader's language. */
export function duration(seconds: number): string {
  const units: [Intl.NumberFormatOptions["unit"], number][] = [
    ["day", 86_400],
    ["hour", 3600],
    ["minute", 60],
    ["second", 1],
  ];
  const [unit, size] = units.find(([, length]) => seconds >= length * 1.5) ?? ["second", 1];
  const options: Intl.NumberFormatOptions = { style: "unit", unitDisplay: "long", maximumFractionDigits: 0 };
  return new Intl.NumberFormat(locale.value, { ...options, unit: unit ?? "second" }).format(Math.round(seconds / size));
}

/** For `<input type="datetime-local">`, in the reader's zone. */
export function localInput(iso: string | null | undefined): string {
  if (!iso) return "";
  const at = new Date(iso);
  return new Date(at.getTime() - at.getTimezoneOffset() * 60_000).toISOString().slice(0, 16);
}

export function fromLocalInput(text: string): string | null {
  return text ? new Date(text).toISOString() : null;
}
