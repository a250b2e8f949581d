import type { shell as texts } from "../en/shell";

export const shell: Record<keyof typeof texts, string> = {
  "nav.label": "页面",
  "nav.settings": "当前登录、语言和配色",
  "nav.live": "实时",
  "nav.campaigns": "活动",
  "nav.search": "查询",
  "nav.blocks": "封禁",
  "nav.webhooks": "Webhook",
  "nav.keys": "API 密钥",
  "nav.audit": "审计日志",

  "signIn.title": "登录",
  "signIn.help": "使用 API 密钥登录。密钥能做的事，您在这里都能做。",
  "signIn.key": "API 密钥",
  "signIn.act": "登录",
  "signIn.wrong": "密钥不存在或已被吊销。",
  "signIn.linkFailed": "登录链接已使用或已过期。请使用 API 密钥，或在引擎所在的机器上运行 redeem dashboard link。",
  "signIn.expired": "您已退出登录：会话已结束，或密钥已被吊销。",

  "health.opening": "正在连接…",
  "health.lost": "连接已断开",
  "health.good": "一切正常",
  "health.notReady": "当前拒绝兑换",

  "search.label": "查询兑换码、订单、用户或编号",
  "search.placeholder": "兑换码、订单、用户、编号（按 / ）",
  "search.empty": "顾客能说出的，都可以查",
  "search.emptyText": "兑换码、订单号、用户名，或者兑换记录、活动的编号。兑换码不会留在地址栏、浏览记录或日志里。",
  "search.nothing": "没有找到「{text}」",
  "search.nothingText": "没有这个兑换码、订单或用户。订单号和用户名区分大小写。",
  "search.events.one": "{n} 条记录",
  "search.events.other": "{n} 条记录",
  "search.codeOf": "活动 {campaign} 的兑换码，批次 {batch}，序号 {serial}",
  "search.userFound": "此用户的合计与兑换记录",
};
