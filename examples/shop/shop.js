/** Thanks the customer. A real shop sends the id to its backend, which asks the engine what was redeemed. */
document.querySelector("redeem-card").addEventListener("redeemed", (event) => {
  document.querySelector("#thanks").textContent = `Thank you! Your number is ${event.detail.id}.`;
});
