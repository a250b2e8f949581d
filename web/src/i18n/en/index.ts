/** English. Short, in the reader's terms. `.one` and `.other` are the forms for 1 and for more. */
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

export const en = {
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
