import { ref, watch } from "vue";

export type Theme = "system" | "light" | "dark";

const KEPT = "redeem.theme";
const dark = matchMedia("(prefers-color-scheme: dark)");
const kept = localStorage.getItem(KEPT);

export const theme = ref<Theme>(kept === "light" || kept === "dark" ? kept : "system");
/** What is shown now; charts draw again when it changes. */
export const shown = ref<"light" | "dark">("light");

function show(): void {
  shown.value = theme.value === "system" ? (dark.matches ? "dark" : "light") : theme.value;
  document.documentElement.dataset["theme"] = shown.value;
}

export function startTheme(): void {
  show();
  dark.addEventListener("change", show);
  watch(theme, (next) => {
    localStorage.setItem(KEPT, next);
    show();
  });
}
