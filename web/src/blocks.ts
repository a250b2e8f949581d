/** How long a block or an allow may last; 0: until somebody lifts it. */
export const LENGTHS = [
  { value: 600, label: "block.length10min" },
  { value: 3600, label: "block.length1h" },
  { value: 86_400, label: "block.length1d" },
  { value: 604_800, label: "block.length7d" },
  { value: 0, label: "block.lengthOpen" },
] as const;
