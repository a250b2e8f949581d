/** The calls of the customer page, with the browser key of its address. */
import { call, type Schemas } from "../api/client";
import { userToken } from "./embedding";

export type Check = Schemas["CodeCheck"];
export type CardTexts = Schemas["CardTexts"];
export type CampaignCard = Schemas["CardOfCampaign"];
type Redemption = Schemas["Redemption"];

/** What may be kept of a redemption: no more of the code than its last four symbols. */
export interface Receipt {
  id: string;
  campaign: string;
  last4: string;
  amount: number | null;
  balance: number | null;
  currency: string | null;
  at: string;
}

export const browserKey = new URLSearchParams(location.search).get("key") ?? "";
const PATIENCE_MS = 15_000;

function ask<T>(method: string, path: string, body?: unknown, idempotencyKey?: string): Promise<T> {
  const headers: Record<string, string> = { Authorization: `Bearer ${browserKey}` };
  if (userToken.value) headers["User-Token"] = userToken.value;
  return call<T>(method, path, { body, headers, patienceMs: PATIENCE_MS, ...(idempotencyKey && { idempotencyKey }) });
}

export async function readCards(): Promise<CampaignCard[]> {
  return (await ask<{ campaigns: CampaignCard[] }>("GET", "/v1/card")).campaigns;
}

export function checkCode(code: string, user: string): Promise<Check> {
  return ask("POST", "/v1/codes/check", { code, user });
}

/** Redeem a code. `amount`: of a balance, in minor units. The same key never redeems twice. */
export async function redeemCode(code: string, user: string, amount: number | null, key: string): Promise<Receipt> {
  const done = await ask<Redemption>("POST", "/v1/redemptions", { code, user, ...(amount !== null && { amount }) }, key);
  return {
    id: done.id,
    campaign: done.campaign,
    last4: done.code.slice(-4),
    amount: done.amount,
    balance: done.balance ?? null,
    currency: done.currency,
    at: done.redeemed_at,
  };
}
