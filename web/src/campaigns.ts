/** What the pages say about a campaign. */
import type { Schemas } from "./api/client";
import { dateTime, duration, money, number, percent } from "./format";
import { t } from "./i18n";

export type Campaign = Schemas["CampaignWithNumbers"];

export interface Bar {
  share: number | null;
  words: string;
  tone: "good" | "rule" | "ended";
}

/** Codes whose use stands, of those that were issued. Multi-use and balance codes may be redeemed more than once. */
export function redeemedBar({ numbers, kind }: Campaign): Bar {
  if (!numbers) return { share: null, words: "–", tone: "good" };
  const { redeemed, issued } = numbers;
  const words = t("bar.redeemed", { redeemed: number(redeemed), issued: number(issued) });
  if (kind !== "single" || issued === 0) return { share: null, words, tone: "good" };
  return { share: redeemed / issued, words: `${words} · ${percent(redeemed / issued)}`, tone: "good" };
}

export function stockBar({ numbers, stock }: Campaign): Bar {
  if (stock === null) return { share: null, words: t("bar.noStock"), tone: "good" };
  const left = numbers?.stock_left;
  if (left === null || left === undefined) return { share: null, words: number(stock), tone: "good" };
  const words = t("bar.left", { left: number(left), all: number(stock) });
  return { share: stock ? left / stock : 0, words, tone: left < stock * 0.1 ? "rule" : "good" };
}

export function budgetBar({ numbers, budget, currency }: Campaign): Bar {
  if (budget === null) return { share: null, words: t("bar.noBudget"), tone: "good" };
  const left = numbers?.budget_left;
  if (left === null || left === undefined) return { share: null, words: money(budget, currency), tone: "good" };
  const words = t("bar.left", { left: money(left, currency), all: money(budget, currency) });
  return { share: budget ? left / budget : 0, words, tone: left < budget * 0.1 ? "rule" : "good" };
}

/** "Starts in 3 days", "5 hours left", "Ended 1 May". */
export function windowWords({ starts_at, ends_at }: Campaign, now = Date.now()): string {
  if (starts_at && Date.parse(starts_at) > now) {
    return t("window.starts", { time: duration((Date.parse(starts_at) - now) / 1000) });
  }
  if (!ends_at) return t("window.open");
  const left = (Date.parse(ends_at) - now) / 1000;
  return left > 0 ? t("window.left", { time: duration(left) }) : t("window.ended", { time: dateTime(ends_at) });
}

export function worth({ amount, currency, kind }: Campaign): string {
  if (amount === null || !currency) return t("campaign.noAmount");
  return kind === "balance" ? t("campaign.balanceOf", { amount: money(amount, currency) }) : money(amount, currency);
}
