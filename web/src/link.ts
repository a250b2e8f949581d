/** The sign-in link: `/admin#sign-in=<token>`. The token leaves address and history before anything else runs. */
let token: string | null = null;

export function takeSignInLink(): void {
  const found = /^#sign-in=(.+)$/.exec(location.hash);
  if (!found?.[1]) return;
  token = decodeURIComponent(found[1]);
  history.replaceState(null, "", location.pathname + location.search);
}

/** The token, once. */
export function takeToken(): string | null {
  const taken = token;
  token = null;
  return taken;
}
