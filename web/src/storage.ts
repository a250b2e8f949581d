/** Storage of the browser, which may refuse: in a frame of another site, or as its owner likes. Then nothing is kept. */
export class Shelf {
  constructor(private readonly open: () => Storage) {}

  read(name: string): string | null {
    try {
      return this.open().getItem(name);
    } catch {
      return null;
    }
  }

  /** `null` removes it. */
  write(name: string, text: string | null): void {
    try {
      if (text === null) this.open().removeItem(name);
      else this.open().setItem(name, text);
    } catch {
      // it is not kept
    }
  }
}

export const lasting = new Shelf(() => localStorage);
/** Ends with the tab. */
export const passing = new Shelf(() => sessionStorage);
