/** CSV files (RFC 4180) that spreadsheets open without running anything in them. */
type Cell = string | number;

export function csvText(rows: Cell[][]): string {
  return rows.map((row) => row.map(cell).join(",")).join("\r\n") + "\r\n";
}

function cell(value: Cell): string {
  // A text that begins like a formula gets an apostrophe, which spreadsheets do not show.
  const text = typeof value === "string" && /^[=+\-@\t\r]/.test(value) ? `'${value}` : String(value);
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

export function downloadCsv(name: string, rows: Cell[][]): void {
  save(new Blob(["\ufeff", csvText(rows)], { type: "text/csv" }), `${name}.csv`);
}

export function save(content: Blob, name: string): void {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(content);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}
