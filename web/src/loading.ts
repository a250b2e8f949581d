/** Loading one thing, or a list page by page, with the states that a page shows. */
import { onScopeDispose, ref, type Ref, shallowRef, watch } from "vue";
import type { Page, Problem } from "./api/client";
import { asProblem, explain } from "./explain";

export interface Loading<T> {
  data: Ref<T | null>;
  problem: Ref<Problem | null>;
  busy: Ref<boolean>;
  reload: () => Promise<void>;
}

/** Load at once, and again whenever `by` changes. What was shown stays until the new answer is there. */
export function useLoading<T>(load: () => Promise<T>, by?: () => unknown): Loading<T> {
  const data = shallowRef<T | null>(null);
  const problem = shallowRef<Problem | null>(null);
  const busy = ref(false);
  let turn = 0;

  async function reload(): Promise<void> {
    const mine = ++turn;
    busy.value = true;
    try {
      const loaded = await load();
      if (mine !== turn) return;
      data.value = loaded;
      problem.value = null;
    } catch (error) {
      if (mine === turn) problem.value = asProblem(error);
    } finally {
      if (mine === turn) busy.value = false;
    }
  }

  if (by) {
    watch(by, () => {
      data.value = null;
      void reload();
    });
  }
  onScopeDispose(() => (turn = -1));
  void reload();
  return { data, problem, busy, reload };
}

export interface Listing<T> {
  items: Ref<T[] | null>;
  next: Ref<string | null>;
  problem: Ref<Problem | null>;
  busy: Ref<boolean>;
  reload: () => Promise<void>;
  more: () => Promise<void>;
}

/** A list by cursor: `more` adds the next page. */
export function useListing<T>(load: (after: string | null) => Promise<Page<T>>, by?: () => unknown): Listing<T> {
  const next = ref<string | null>(null);
  const first = useLoading(async () => {
    const page = await load(null);
    next.value = page.next;
    return page.items;
  }, by);

  async function more(): Promise<void> {
    if (!next.value || first.busy.value) return;
    first.busy.value = true;
    try {
      const page = await load(next.value);
      first.data.value = [...(first.data.value ?? []), ...page.items];
      next.value = page.next;
      first.problem.value = null;
    } catch (error) {
      first.problem.value = asProblem(error);
    } finally {
      first.busy.value = false;
    }
  }

  return { items: first.data, next, problem: first.problem, busy: first.busy, reload: first.reload, more };
}

export interface Act<T> {
  busy: Ref<boolean>;
  problemText: Ref<string>;
  act: (about: T) => Promise<void>;
}

/** An act of one click, without a dialog: not twice at once, and what was refused is said in words. */
export function useAct<T>(send: (about: T) => Promise<void>): Act<T> {
  const busy = ref(false);
  const problemText = ref("");

  async function act(about: T): Promise<void> {
    if (busy.value) return;
    busy.value = true;
    problemText.value = "";
    try {
      await send(about);
    } catch (error) {
      problemText.value = explain(asProblem(error));
    } finally {
      busy.value = false;
    }
  }

  return { busy, problemText, act };
}
