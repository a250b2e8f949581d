/** What a problem means, in the reader's language where this page knows it, else in the API's words. */
import { Problem } from "./api/client";
import { language, named, t } from "./i18n";
import { duration } from "./format";

export function explain(problem: Problem): string {
  if (problem.status === 0) return t("problem.unreachable");
  if (problem.status === 403 && problem.code === "forbidden") return t("problem.forbidden");
  const after = problem.document.retry_after_s;
  const wait = after ? ` ${t("problem.retryAfter", { time: duration(after) })}` : "";
  if (language.value === "en" && problem.detail) return problem.detail + wait;
  return named("problem", problem.code, problem.detail || problem.code) + wait;
}

export function asProblem(error: unknown): Problem {
  if (error instanceof Problem) return error;
  console.error(error);
  return new Problem(-1, "page_failed", String(error), null);
}
