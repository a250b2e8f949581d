/** Calls of the engine's API, from the same origin: with the session's cookie, or with a key in `headers`. */
import { ref } from "vue";
import type { components } from "./schema";

export type Schemas = components["schemas"];

export interface Page<T> {
  items: T[];
  next: string | null;
}

/** What the engine refused or could not do; `status` 0 means that it could not be reached. */
export class Problem extends Error {
  constructor(
    readonly status: number,
    readonly code: string,
    readonly detail: string,
    readonly requestId: string | null,
    readonly document: Partial<Schemas["Problem"]> = {},
  ) {
    super(detail || code);
  }
}

/** False since the last call did not reach the engine. */
export const reachable = ref(true);

let onSignedOut: () => void = () => undefined;

/** Called when an answer says that the session is over. */
export function whenSignedOut(act: () => void): void {
  onSignedOut = act;
}

export interface Options {
  body?: unknown;
  query?: Record<string, string | number | null | undefined>;
  idempotencyKey?: string;
  headers?: Record<string, string>;
  /** After this time without an answer it counts as not reached. */
  patienceMs?: number;
}

export async function call<T>(method: string, path: string, options: Options = {}): Promise<T> {
  const headers = { ...options.headers };
  if (options.body !== undefined) headers["Content-Type"] = "application/json";
  if (options.idempotencyKey) headers["Idempotency-Key"] = options.idempotencyKey;
  const init: RequestInit = { method, headers, credentials: "same-origin", cache: "no-store", redirect: "error" };
  if (options.body !== undefined) init.body = JSON.stringify(options.body);
  if (options.patienceMs) init.signal = AbortSignal.timeout(options.patienceMs);
  const response = await reach(path + queryOf(options.query), init);
  if (!response.ok) throw await problemOf(response);
  return (response.status === 204 ? undefined : await response.json()) as T;
}

export function get<T>(path: string, query?: Options["query"]): Promise<T> {
  return call<T>("GET", path, query ? { query } : {});
}

async function reach(address: string, init: RequestInit): Promise<Response> {
  try {
    const response = await fetch(address, init);
    reachable.value = true;
    return response;
  } catch {
    reachable.value = false;
    throw new Problem(0, "unreachable", "", null);
  }
}

export async function problemOf(response: Response): Promise<Problem> {
  const document = (await response.json().catch(() => ({}))) as Partial<Schemas["Problem"]>;
  if (response.status === 401 && document.code === "unauthenticated") onSignedOut();
  const code = document.code ?? `http_${response.status}`;
  return new Problem(response.status, code, document.detail ?? "", response.headers.get("Request-Id"), document);
}

export function queryOf(query: Options["query"] = {}): string {
  const set = Object.entries(query).filter(([, value]) => value !== null && value !== undefined && value !== "");
  return set.length ? `?${new URLSearchParams(set.map(([name, value]) => [name, String(value)]))}` : "";
}

/** A key for one act, made before the first click: the act happens once, however often it is sent. */
export function newKey(page = "page"): string {
  const bytes = crypto.getRandomValues(new Uint8Array(16)); // randomUUID() is missing outside secure contexts
  return `${page}-${Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("")}`;
}

/** Send a file as it is, and tell how much of it has left. */
export function upload<T>(path: string, file: File, idempotencyKey: string, sent: (share: number) => void): Promise<T> {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest(); // fetch() does not tell what has left
    request.open("POST", path);
    request.setRequestHeader("Content-Type", file.name.endsWith("json") ? "application/x-ndjson" : "text/csv");
    request.setRequestHeader("Idempotency-Key", idempotencyKey);
    request.responseType = "json";
    request.upload.onprogress = (event) => sent(event.lengthComputable ? event.loaded / event.total : 0);
    request.onerror = () => reject(new Problem(0, "unreachable", "", null));
    request.onload = () => {
      const answer = (request.response ?? {}) as Partial<Schemas["Problem"]>;
      if (request.status < 300) resolve(answer as T);
      else
        reject(
          new Problem(request.status, answer.code ?? "", answer.detail ?? "", request.getResponseHeader("Request-Id"), answer),
        );
    };
    request.send(file);
  });
}
