// Numbers as CSV.

import type { Curve } from "./charts.js";
import type { Values } from "./frames.js";

export type Cell = string | number | null;

/** A field, in quotes where it needs them; what a spreadsheet would take for a formula is kept as text. */
function field(cell: Cell): string {
  if (cell === null) return "";
  if (typeof cell === "number") return Number.isFinite(cell) ? String(cell) : "";
  const text = /^[=+\-@\t\r]/.test(cell) && !Number.isFinite(Number(cell)) ? `'${cell}` : cell;
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

export function csv(head: readonly string[], rows: Iterable<readonly Cell[]>): string {
  const lines = [head.map(field).join(",")];
  for (const row of rows) lines.push(row.map(field).join(","));
  return `${lines.join("\r\n")}\r\n`;
}

/** One line a point of each curve. */
export function* curveRows(chart: string, unit: string, curves: readonly Curve[]): Generator<Cell[]> {
  for (const { label, steps, middle, low, high } of curves) {
    for (const [i, step] of steps.entries()) {
      yield [chart, unit, label, step, middle[i] ?? null, low[i] ?? null, high[i] ?? null];
    }
  }
}

export const CURVE_HEAD = ["chart", "unit", "curve", "step", "middle", "low", "high"] as const;

/** One line a cell of a map. */
export function* mapRows(name: string, step: number, { size, values }: Values, value: (one: number) => Cell): Generator<Cell[]> {
  const columns = size[1];
  for (let i = 0; i < values.length; i += 1) {
    yield [name, step, Math.floor(i / columns), i % columns, value(values[i] ?? NaN)];
  }
}

export const MAP_HEAD = ["map", "step", "row", "column", "value"] as const;

/** The cells of a table of the page, as they are written there, with plain minus signs. */
export function tableCsv(table: HTMLTableElement): string {
  const text = [...table.rows].map((row) => [...row.cells].map((cell) => (cell.textContent ?? "").trim().replaceAll("\u2212", "-")));
  const [head = [], ...rows] = text;
  return csv(head, rows);
}

