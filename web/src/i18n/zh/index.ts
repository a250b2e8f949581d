/** 简体中文. Written for its readers, not word by word after the English. */
import { anomalies } from "./anomalies";
import { audit } from "./audit";
import { blocks } from "./blocks";
import { campaigns } from "./campaigns";
import { codes } from "./codes";
import { common } from "./common";
import { keys } from "./keys";
import { live } from "./live";
import { operations } from "./operations";
import { problems } from "./problems";
import { shell } from "./shell";
import { stories } from "./stories";
import { webhooks } from "./webhooks";
import type { Key } from "..";

export const zh: Record<Key, string> = {
  ...common,
  ...shell,
  ...problems,
  ...campaigns,
  ...codes,
  ...stories,
  ...live,
  ...keys,
  ...audit,
  ...blocks,
  ...anomalies,
  ...operations,
  ...webhooks,
};
