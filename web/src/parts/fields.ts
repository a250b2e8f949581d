import type { InjectionKey } from "vue";

export interface WrongFields {
  register: (name: string) => void;
  wrong: (name: string) => string;
}

export const wrongFields: InjectionKey<WrongFields> = Symbol("wrong fields");
