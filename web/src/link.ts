/** The sign-in link: `/admin#sign-in=<token>`.
 *
 * `main.ts` imports this module first: the token leaves address and history before the router reads them.
 */
let token = taken();

function taken(): string | null {
  const found = /^#sign-in=(.+)$/.exec(location.hash);
  if (!found?.[1]) return null;
  history.replaceState(null, "", location.pathname + location.search);
  return decodeURIComponent(found[1]);
}

/** The token, once. */
export function takeToken(): string | null {
  const given = token;
  token = null;
  return given;
}
