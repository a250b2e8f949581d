const card = document.querySelector("redeem-card");

/** Thanks the customer. A real shop sends the id to its backend, which asks the engine what was redeemed. */
card.addEventListener("redeemed", (event) => {
  document.querySelector("#thanks").textContent = `Thank you! Your number is ${event.detail.id}.`;
});

/** Says who the customer is: with a token that the backend signs, and with another one when it has ended. */
async function giveToken() {
  const answer = await fetch("/user-token");
  if (answer.status === 200) card.userToken = await answer.text();
}

card.addEventListener("user-token-ended", giveToken);
await customElements.whenDefined("redeem-card");
await giveToken();
