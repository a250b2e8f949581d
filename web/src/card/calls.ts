/** The calls of the customer page, with the browser key of its address. */
import { call, newKey, Problem, type Schemas } from "../api/client";
import { lasting } from "../storage";
import { newToken, userToken } from "./embedding";
import { type Challenge, solveBeside } from "./solving";

export type Check = Schemas["CodeCheck"];
export type CardTexts = Schemas["CardTexts"];
export type CampaignCard = Schemas["CardOfCampaign"];
export type PastRedemption = Schemas["RedemptionOfUser"];
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

export const HISTORY_MAX = 20;
export const browserKey = new URLSearchParams(location.search).get("key") ?? "";
const PATIENCE_MS = 15_000;
const CHALLENGES_MAX = 3; // each is good once; the one after a pause may be too old
const GUEST = `redeem.card.${browserKey}.guest`;

async function ask<T>(method: string, path: string, body?: object, idempotencyKey?: string): Promise<T> {
  const options = { patienceMs: PATIENCE_MS, ...(idempotencyKey && { idempotencyKey }) };
  let sent = body;
  let renewed = false;
  for (let left = CHALLENGES_MAX; ; left--) {
    const headers: Record<string, string> = { Authorization: `Bearer ${browserKey}` };
    if (userToken.value) headers["User-Token"] = userToken.value;
    try {
      return await call<T>(method, path, { ...options, headers, body: sent });
    } catch (error) {
      if (!renewed && hasEnded(error) && (await newToken())) {
        renewed = true;
        continue;
      }
      const challenge = challengeOf(error);
      if (!challenge || !left) throw error;
      sent = { ...body, client: { challenge: await solveBeside(challenge) } };
    }
  }
}

function hasEnded(error: unknown): boolean {
  return error instanceof Problem && error.code === "invalid_user_token";
}

function challengeOf(error: unknown): Challenge | undefined {
  return error instanceof Problem ? (error.document as { challenge?: Challenge }).challenge : undefined;
}

/** Who redeems. A token says it; without one, this browser is somebody: limits per user count it. */
function who(): { user?: string } {
  return userToken.value ? {} : { user: guest };
}

const guest = lasting.read(GUEST) ?? newGuest();

function newGuest(): string {
  const made = newKey("guest");
  lasting.write(GUEST, made);
  return made;
}

export async function readCards(): Promise<CampaignCard[]> {
  return (await ask<{ campaigns: CampaignCard[] }>("GET", "/v1/card")).campaigns;
}

export async function readRedemptions(): Promise<PastRedemption[]> {
  return (await ask<{ items: PastRedemption[] }>("GET", `/v1/card/redemptions?limit=${HISTORY_MAX}`)).items;
}

export function checkCode(code: string): Promise<Check> {
  return ask("POST", "/v1/codes/check", { code, ...who() });
}

/** Redeem a code. `amount`: of a balance, in minor units. The same key never redeems twice. */
export async function redeemCode(code: string, amount: number | null, key: string): Promise<Receipt> {
  const body = { code, ...who(), ...(amount !== null && { amount }) };
  const done = await ask<Redemption>("POST", "/v1/redemptions", body, key);
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
