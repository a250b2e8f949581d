/** The audit log in words. */
import type { Schemas } from "./api/client";
import { dateTime, money, number } from "./format";
import { named, t } from "./i18n";

export function actWords(act: string): string {
  return named("act", act);
}

/** "Stock: 5,000 → 8,000" for each changed field, or the details as they are. */
export function changeWords(row: Schemas["Act"], currency: string | null): string[] {
  const { verdict, ...all } = (row.details ?? {}) as Record<string, unknown>;
  const details = Object.entries(verdict === undefined ? all : { verdict }); // the sentence of a whole report
  return details.map(([name, value]) => {
    const label = named("field", name);
    if (row.act === "update_campaign" && Array.isArray(value) && value.length === 2) {
      return t("change.line", { label, from: shown(name, value[0], currency), to: shown(name, value[1], currency) });
    }
    return `${label}: ${shown(name, value, currency)}`;
  });
}

function shown(name: string, value: unknown, currency: string | null): string {
  if (value === null || value === undefined) return t("change.none");
  if (name === "state") return named("campaign.states", String(value));
  if (name === "kind") return named("kind", String(value));
  if (typeof value === "number" && currency && ["amount", "budget"].includes(name)) return money(value, currency);
  if (typeof value === "number") return number(value);
  if (typeof value === "string" && /^\d{4}-\d\d-\d\dT/.test(value)) return dateTime(value);
  if (Array.isArray(value)) return value.join(", ");
  return typeof value === "string" ? value : JSON.stringify(value);
}
