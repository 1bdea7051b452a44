// Numbers as text, and rounding as the library does it.

export const MINUS = "\u2212";
export type Limits = readonly [low: number, high: number];

/** A value with three significant digits and a true minus sign: format_number of the library. */
export function number(value: number | null | undefined): string {
  if (value === null || value === undefined || !Number.isFinite(value)) return "–";
  if (Number.isInteger(value) && Math.abs(value) < 1000) return String(value).replace("-", MINUS);
  const exponent = Number(value.toExponential(2).split("e")[1]);
  const places = Math.max(0, 2 - exponent);
  const text = places <= 6 && exponent < 9
    ? value.toLocaleString("en-US", { minimumFractionDigits: places, maximumFractionDigits: places })
    : value.toExponential(2).replace("+", "");
  return text.replaceAll("-", MINUS);
}

export const signed = (value: number): string => (value > 0 ? "+" : "") + number(value);

/** A whole number with separators between thousands. */
export const count = (value: number): string => value.toLocaleString("en-US").replace("-", MINUS);

/** The shortest decimal that is no other float32, as a machine reads it. */
export function plain(value: number): string {
  for (let digits = 1; digits <= 9; digits += 1) {
    const text = value.toPrecision(digits);
    if (Math.fround(Number(text)) === Math.fround(value)) return String(Number(text));
  }
  return String(value);
}

/** The same with a true minus sign. */
export const exact = (value: number): string => plain(value).replaceAll("-", MINUS);

/** A name of the library as words. */
export const title = (name: string): string => name.replaceAll("_", " ");

export const capital = (text: string): string => text.slice(0, 1).toUpperCase() + text.slice(1);

/** Rounds halves to even, as the library does. */
export function rint(value: number): number {
  const below = Math.floor(value);
  const rest = value - below;
  return rest < 0.5 || (rest === 0.5 && below % 2 === 0) ? below : below + 1;
}

export const clamp = (value: number, low: number, high: number): number => Math.min(high, Math.max(low, value));

/** Least and greatest of the values that are finite; null if there is none. */
export function limitsOf(values: ArrayLike<number | null>): Limits | null {
  let low = Infinity;
  let high = -Infinity;
  for (let i = 0; i < values.length; i += 1) {
    const value = values[i];
    if (value === null || value === undefined || !Number.isFinite(value)) continue;
    if (value < low) low = value;
    if (value > high) high = value;
  }
  return low <= high ? [low, high] : null;
}

/** The limits that hold both. */
export function joined(one: Limits | null, other: Limits | null): Limits | null {
  if (one === null || other === null) return one ?? other;
  return [Math.min(one[0], other[0]), Math.max(one[1], other[1])];
}

/** Limits that are symmetric about 0, for values of both signs. */
export function symmetric(limits: Limits | null): Limits | null {
  if (limits === null) return null;
  const most = Math.max(Math.abs(limits[0]), Math.abs(limits[1]));
  return [-most, most];
}

/** The index of the step that is nearest to one; of two, the earlier one. */
export function nearest(steps: readonly number[], step: number): number {
  let best = 0;
  steps.forEach((one, at) => { if (Math.abs(one - step) < Math.abs((steps[best] ?? one) - step)) best = at; });
  return best;
}
