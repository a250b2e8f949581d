/** `<redeem-card key="pk_…">`: the customer page in a frame of a shop's page.
 *
 * The engine serves this file at `/card/redeem-card.js`. `src` names another engine than the one that served
 * it. The frame's page allows only pages of the key's origins around it, and messages are exchanged with it
 * alone. `redeemed` is dispatched with the redemption's id, never with a code; `user-token-ended` when the
 * engine refuses the token, so that the shop can set another one.
 */
const served = new URL(import.meta.url).origin;

interface Told {
  type?: string;
  height?: number;
  id?: string;
}

class RedeemCard extends HTMLElement {
  private frame: HTMLIFrameElement | null = null;
  private token = "";

  private get engine(): string {
    return new URL(this.getAttribute("src") ?? served, location.href).origin;
  }

  /** A token that the shop's backend has signed: says who the customer is. */
  set userToken(token: string) {
    this.token = token;
    this.sendToken();
  }

  connectedCallback(): void {
    const page = new URL("/card", this.engine);
    for (const name of ["key", "lang"]) {
      const value = this.getAttribute(name);
      if (value) page.searchParams.set(name, value);
    }
    const frame = document.createElement("iframe");
    frame.src = page.href;
    frame.title = this.getAttribute("title") ?? "Redeem a code";
    frame.allow = `camera ${this.engine}; clipboard-write ${this.engine}`;
    frame.referrerPolicy = "origin";
    Object.assign(frame.style, { display: "block", width: "100%", height: "480px", border: "0", colorScheme: "normal" });
    this.frame = frame;
    window.addEventListener("message", this.heard);
    this.replaceChildren(frame);
  }

  disconnectedCallback(): void {
    window.removeEventListener("message", this.heard);
  }

  private heard = (event: MessageEvent<Told | null>): void => {
    const frame = this.frame;
    if (!frame || event.source !== frame.contentWindow || event.origin !== this.engine) return;
    const { type, height, id } = event.data ?? {};
    if (type === "redeem-card:ready") this.sendToken();
    if (type === "redeem-card:size" && typeof height === "number") frame.style.height = `${Math.ceil(height)}px`;
    if (type === "redeem-card:redeemed") this.dispatch("redeemed", { id });
    if (type === "redeem-card:user-token-ended") this.dispatch("user-token-ended");
  };

  private dispatch(name: string, detail?: { id: string | undefined }): void {
    this.dispatchEvent(new CustomEvent(name, { detail, bubbles: true, composed: true }));
  }

  private sendToken(): void {
    if (this.token) {
      this.frame?.contentWindow?.postMessage({ type: "redeem-card:user-token", token: this.token }, this.engine);
    }
  }
}

customElements.get("redeem-card") ?? customElements.define("redeem-card", RedeemCard);
