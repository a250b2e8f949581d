import type { Component } from "vue";
import { createRouter, createWebHistory, type RouteRecordRaw } from "vue-router";
import type { Key } from "./i18n";
import AnomaliesPage from "./pages/AnomaliesPage.vue";
import AuditPage from "./pages/AuditPage.vue";
import BlocksPage from "./pages/BlocksPage.vue";
import CampaignPage from "./pages/CampaignPage.vue";
import CampaignsPage from "./pages/CampaignsPage.vue";
import KeysPage from "./pages/KeysPage.vue";
import LivePage from "./pages/LivePage.vue";
import LostPage from "./pages/LostPage.vue";
import OperationsPage from "./pages/OperationsPage.vue";
import OrderPage from "./pages/OrderPage.vue";
import RedemptionPage from "./pages/RedemptionPage.vue";
import SearchPage from "./pages/SearchPage.vue";
import UserPage from "./pages/UserPage.vue";
import WebhookPage from "./pages/WebhookPage.vue";
import WebhooksPage from "./pages/WebhooksPage.vue";

declare module "vue-router" {
  interface RouteMeta {
    title: Key;
    nav?: string;
  }
}

const CAMPAIGN = "/campaigns/:id/:tab(batches|redemptions|imports|voids|changes)?";

/** `nav`: the entry of the navigation that a page belongs to which is about one thing; its id is a property. */
function page(path: string, name: string, component: Component, title: Key, nav?: string): RouteRecordRaw {
  return { path, name, component, props: nav !== undefined, meta: { title, ...(nav ? { nav } : {}) } };
}

// All pages are in one file: it is small, and a page opens while the connection is lost.
const routes: RouteRecordRaw[] = [
  page("/", "live", LivePage, "nav.live"),
  page("/campaigns", "campaigns", CampaignsPage, "nav.campaigns"),
  page(CAMPAIGN, "campaign", CampaignPage, "nav.campaigns", "campaigns"),
  page("/search", "search", SearchPage, "nav.search"),
  page("/redemptions/:id", "redemption", RedemptionPage, "story.redemption", "search"),
  page("/orders/:order", "order", OrderPage, "story.order", "search"),
  page("/users/:user", "user", UserPage, "story.user", "search"),
  page("/anomalies", "anomalies", AnomaliesPage, "nav.anomalies"),
  page("/blocks", "blocks", BlocksPage, "nav.blocks"),
  page("/webhooks", "webhooks", WebhooksPage, "nav.webhooks"),
  page("/webhooks/:id", "webhook", WebhookPage, "nav.webhooks", "webhooks"),
  page("/keys", "keys", KeysPage, "nav.keys"),
  page("/operations", "operations", OperationsPage, "nav.operations"),
  page("/audit-log", "audit", AuditPage, "nav.audit"),
  page("/:rest(.*)", "lost", LostPage, "state.notFound"),
];

export const router = createRouter({
  history: createWebHistory("/admin/"),
  routes,
  scrollBehavior: (to, from, kept) => kept ?? (to.path === from.path ? false : { top: 0 }),
});
