/** The engine's numbers, once a second: one stream for all pages, closed while nobody looks. */
import { computed, ref, shallowRef } from "vue";
import { reachable } from "../api/client";
import { t } from "../i18n";
import { may, session } from "../session";
import { type Health, type HistoryEvent, KEPT_S, type Second, type SecondEvent, secondOf, secondsOf } from "./second";

/** The last 15 minutes, the oldest first, one entry a second; a missing second is a gap. */
export const seconds = shallowRef<Second[]>([]);
/** The latest second as it was told. */
export const latest = shallowRef<SecondEvent | null>(null);
export const connection = ref<"opening" | "open" | "lost">("opening");
/** The stream has the numbers of all campaigns, so a key that is limited to some may not read it. */
export const allowed = computed(() => (may.value("read") || may.value("admin")) && !session.value?.campaigns);

const AGAIN_MS = 3000;
const READY_MS = 10_000;
const ready = ref<boolean | null>(null);
let source: EventSource | null = null;
let timer: ReturnType<typeof setTimeout> | undefined;
let wanted = false;

export function connect(): void {
  wanted = true;
  document.addEventListener("visibilitychange", follow);
  follow();
}

export function disconnect(): void {
  wanted = false;
  document.removeEventListener("visibilitychange", follow);
  follow();
  seconds.value = [];
  latest.value = null;
  connection.value = "opening";
}

function follow(): void {
  clearTimeout(timer);
  const open = wanted && !document.hidden;
  if (open && !allowed.value) void askReady();
  else if (open && !source) listen();
  else if (!open && source) {
    source.close();
    source = null;
  }
}

function listen(): void {
  source = new EventSource("/admin/live");
  source.addEventListener("history", (event) => {
    seconds.value = secondsOf(JSON.parse(event.data) as HistoryEvent).slice(-KEPT_S);
    connection.value = "open";
  });
  source.addEventListener("second", (event) => {
    const told = JSON.parse(event.data) as SecondEvent;
    const last = seconds.value.at(-1);
    if (last && told.second <= last.second) return; // the history has it already
    seconds.value = [...seconds.value, secondOf(told)].slice(-KEPT_S);
    latest.value = told;
    connection.value = "open";
  });
  source.onerror = () => {
    connection.value = "lost";
    if (source?.readyState !== EventSource.CLOSED) return; // the browser tries again by itself
    source = null;
    timer = setTimeout(follow, AGAIN_MS);
  };
}

/** For those who may not read the stream. */
async function askReady(): Promise<void> {
  try {
    ready.value = (await fetch("/readyz", { cache: "no-store" })).ok;
    connection.value = "open";
  } catch {
    connection.value = "lost";
  }
  if (wanted && !document.hidden) timer = setTimeout(follow, READY_MS);
}

const TONES: Record<Health["level"], string> = { ok: "good", warning: "rule", failure: "fault" };

/** The one line of health. */
export const health = computed(() => {
  if (connection.value === "lost" || !reachable.value) return { tone: "fault", words: t("health.lost") };
  const told = latest.value?.health;
  if (!told && ready.value !== null) {
    return ready.value ? { tone: "good", words: t("health.good") } : { tone: "fault", words: t("health.notReady") };
  }
  if (!told) return { tone: "", words: t("health.opening") };
  return { tone: TONES[told.level], words: told.level === "ok" ? t("health.good") : told.words.join(" · ") };
});
