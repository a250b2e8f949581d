/** What came behind the `#` of the address: a code, or a token. It leaves address and history at once.
 *
 * The first module of a page imports this, so that nothing else sees the address before. A browser sends
 * this part of an address to no server.
 */
const found = new URLSearchParams(location.hash.slice(1));

if (location.hash) history.replaceState(null, "", location.pathname + location.search);

/** A value, once. */
export function take(name: string): string | null {
  const given = found.get(name);
  found.delete(name);
  return given;
}
