/** The Web Worker that solves a challenge: the challenge comes as a message, and the solution goes back as one. */
import { type Challenge, solve } from "./puzzle";

addEventListener("message", ({ data }: MessageEvent<Challenge>) => {
  void solve(data).then(
    (solution) => postMessage(solution),
    () => postMessage(null),
  );
});
