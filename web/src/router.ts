import { createRouter, createWebHistory, type RouteRecordRaw } from "vue-router";
import type { Key } from "./i18n";
import AuditPage from "./pages/AuditPage.vue";
import BlocksPage from "./pages/BlocksPage.vue";
import CampaignPage from "./pages/CampaignPage.vue";
import CampaignsPage from "./pages/CampaignsPage.vue";
import KeysPage from "./pages/KeysPage.vue";
import LivePage from "./pages/LivePage.vue";
import LostPage from "./pages/LostPage.vue";
import OrderPage from "./pages/OrderPage.vue";
import RedemptionPage from "./pages/RedemptionPage.vue";
import SearchPage from "./pages/SearchPage.vue";
import UserPage from "./pages/UserPage.vue";
import WebhookPage from "./pages/WebhookPage.vue";
import WebhooksPage from "./pages/WebhooksPage.vue";

declare module "vue-router" {
  interface RouteMeta {
    title: Key;
    /** The entry of the navigation that this page belongs to. */
    nav?: string;
  }
}

// All pages are in one file: it is small, and a page opens while the connection is lost.
const routes: RouteRecordRaw[] = [
  { path: "/", name: "live", component: LivePage, meta: { title: "nav.live" } },
  {
    path: "/campaigns",
    name: "campaigns",
    component: CampaignsPage,
    meta: { title: "nav.campaigns" },
  },
  {
    path: "/campaigns/:id/:tab(batches|redemptions|imports|voids|changes)?",
    name: "campaign",
    component: CampaignPage,
    props: true,
    meta: { title: "nav.campaigns", nav: "campaigns" },
  },
  { path: "/search", name: "search", component: SearchPage, meta: { title: "nav.search" } },
  {
    path: "/redemptions/:id",
    name: "redemption",
    component: RedemptionPage,
    props: true,
    meta: { title: "story.redemption", nav: "search" },
  },
  {
    path: "/orders/:order",
    name: "order",
    component: OrderPage,
    props: true,
    meta: { title: "story.order", nav: "search" },
  },
  {
    path: "/users/:user",
    name: "user",
    component: UserPage,
    props: true,
    meta: { title: "story.user", nav: "search" },
  },
  { path: "/blocks", name: "blocks", component: BlocksPage, meta: { title: "nav.blocks" } },
  {
    path: "/webhooks",
    name: "webhooks",
    component: WebhooksPage,
    meta: { title: "nav.webhooks" },
  },
  {
    path: "/webhooks/:id",
    name: "webhook",
    component: WebhookPage,
    props: true,
    meta: { title: "nav.webhooks", nav: "webhooks" },
  },
  { path: "/keys", name: "keys", component: KeysPage, meta: { title: "nav.keys" } },
  { path: "/audit-log", name: "audit", component: AuditPage, meta: { title: "nav.audit" } },
  { path: "/:rest(.*)", name: "lost", component: LostPage, meta: { title: "state.notFound" } },
];

export const router = createRouter({
  history: createWebHistory("/admin/"),
  routes,
  scrollBehavior: (to, from, kept) => kept ?? (to.path === from.path ? false : { top: 0 }),
});
