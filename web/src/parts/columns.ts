/** One column of a table. */
export interface Column<Row> {
  key: string;
  label: string;
  number?: boolean;
  long?: boolean;
  /** What the CSV has; without it the column is not in the CSV. */
  csv?: (row: Row) => string | number | null | undefined;
}
