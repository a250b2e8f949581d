/** Challenges of the guard: work that costs a browser a second, and a guesser one for each code (docs/browser-keys.md).
 *
 * The form is the second one of ALTCHA with PBKDF2.
 */
export interface Challenge {
  parameters: { cost: number; keyLength: number; keyPrefix: string; nonce: string; salt: string };
  signature: string;
}

const AT_ONCE = 4;

/** Solve a challenge. Returns what goes into `client.challenge`. */
export async function solve(challenge: Challenge): Promise<string> {
  const { cost, keyLength, keyPrefix, nonce, salt } = challenge.parameters;
  const seed = bytesOf(nonce);
  const how = { name: "PBKDF2", hash: "SHA-256", salt: bytesOf(salt), iterations: cost };

  async function derive(counter: number): Promise<string> {
    const password = new Uint8Array(seed.length + 4);
    password.set(seed);
    new DataView(password.buffer).setUint32(seed.length, counter); // big-endian
    const key = await crypto.subtle.importKey("raw", password, "PBKDF2", false, ["deriveBits"]);
    return hexOf(await crypto.subtle.deriveBits(how, key, 8 * keyLength));
  }

  for (let first = 0; ; first += AT_ONCE) {
    const keys = await Promise.all(Array.from({ length: AT_ONCE }, (_, more) => derive(first + more)));
    const found = keys.findIndex((key) => key.startsWith(keyPrefix));
    if (found >= 0) {
      const solution = { counter: first + found, derivedKey: keys[found] };
      return btoa(JSON.stringify({ challenge, solution }));
    }
  }
}

function bytesOf(hex: string): Uint8Array<ArrayBuffer> {
  return Uint8Array.from(hex.match(/../g) ?? [], (byte) => parseInt(byte, 16));
}

function hexOf(bytes: ArrayBuffer): string {
  return Array.from(new Uint8Array(bytes), (byte) => byte.toString(16).padStart(2, "0")).join("");
}
