// Redeems a code with types generated from docs/openapi.json: a wrong field or path is an error of the compiler.
import createClient from "openapi-fetch";
import type { components, paths } from "./api.js";

declare const process: { env: Record<string, string> };

const { REDEEM_URL: baseUrl, REDEEM_KEY: key, REDEEM_CODE: code } = process.env;
const client = createClient<paths>({ baseUrl, headers: { Authorization: `Bearer ${key}` } });
const body: components["schemas"]["RedeemRequest"] = { code, user: "ann", order: "o-1", currency: "EUR" };

const params = { header: { "Idempotency-Key": "order-1" } };
const first = await client.POST("/v1/redemptions", { params, body });
const replayed = await client.POST("/v1/redemptions", { params, body });
const refused = await client.POST("/v1/redemptions", { body });
const status: "redeemed" | undefined = first.data?.status;
const list = await client.GET("/v1/redemptions", { params: { query: { order: "o-1" } } });
console.log(
  JSON.stringify({
    status,
    amount: first.data?.amount,
    replayed: replayed.data?.replayed,
    refusal: refused.error?.code,
    listed: list.data?.items.map((record) => record.id === first.data?.id),
  }),
);
