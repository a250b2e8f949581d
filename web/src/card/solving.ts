/** Solves challenges in a worker, so that the page stays responsive; on the page where a browser refuses workers. */
import { type Challenge, solve } from "./puzzle";

export type { Challenge };

export async function solveBeside(challenge: Challenge): Promise<string> {
  return (await inWorker(challenge).catch(() => null)) ?? solve(challenge);
}

async function inWorker(challenge: Challenge): Promise<string | null> {
  const worker = new Worker(new URL("./solver.ts", import.meta.url), { type: "module" });
  try {
    return await new Promise((resolve, reject) => {
      worker.addEventListener("message", ({ data }: MessageEvent<string | null>) => resolve(data));
      worker.addEventListener("error", reject);
      worker.postMessage(challenge);
    });
  } finally {
    worker.terminate();
  }
}
