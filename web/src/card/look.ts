/** How the page looks: the cards of its campaigns, in the language that is shown. */
import { computed, ref, shallowRef, watchEffect } from "vue";
import { language } from "../i18n/language";
import { type CampaignCard, type CardTexts, readCards } from "./calls";
import { card } from "./journey";
import { receipt } from "./kept";

const dark = matchMedia("(prefers-color-scheme: dark)");
const darkDevice = ref(dark.matches);
const campaigns = shallowRef<CampaignCard[]>([]);
export const loaded = ref(false);

/** The campaign that is shown: that of the code, else the only one of this page. */
const campaign = computed(() => {
  const id = card.value?.campaign ?? receipt.value?.campaign;
  if (id) return campaigns.value.find((one) => one.id === id);
  return campaigns.value.length === 1 ? campaigns.value[0] : undefined;
});

/** A member that all cards have in common, while it is not known which campaign is meant. */
function shared(of: (one: CampaignCard) => string | null | undefined): string {
  if (campaign.value) return of(campaign.value) ?? "";
  const [first = "", ...others] = new Set(campaigns.value.map((one) => of(one) ?? ""));
  return others.length ? "" : first;
}

export const brand = computed(() => shared((one) => one.card?.brand));

export const texts = computed<CardTexts>(() => {
  const both = campaign.value?.card?.texts;
  return both?.[language.value] ?? both?.en ?? both?.zh ?? {};
});

/** Read the cards and put their colours on. A page without cards works, in its own look. */
export async function startLook(): Promise<void> {
  dark.addEventListener("change", () => (darkDevice.value = dark.matches));
  watchEffect(() => {
    const { dataset } = document.documentElement;
    const scheme = shared((one) => one.card?.scheme) || "auto";
    dataset["theme"] = scheme === "auto" ? (darkDevice.value ? "dark" : "light") : scheme;
    if (loaded.value) dataset["accent"] = shared((one) => one.card?.accent) || "blue";
  });
  try {
    campaigns.value = await readCards();
  } finally {
    loaded.value = true;
  }
}
