import { card as en } from "../i18n/en/card";
import { speaking } from "../i18n/language";
import { card as zh } from "../i18n/zh/card";

export type CardKey = keyof typeof en;

export const { t, tn } = speaking<CardKey>({ en, zh });
