// Colour maps, as 256 canvas pixels each.

import { rint, clamp, type Limits } from "./numbers.js";

export type Palette = Uint32Array<ArrayBuffer>;

export function bytes(base64: string): Uint8Array<ArrayBuffer> {
  return Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
}

/** A colour as the four bytes of a canvas pixel, in this machine's byte order. */
export function packed(red: number, green: number, blue: number): number {
  return new Uint32Array(new Uint8ClampedArray([red, green, blue, 255]).buffer)[0] ?? 0;
}

/** 256 colours of three bytes each. */
export function readPalette(colours: ArrayLike<number>): Palette {
  return Uint32Array.from({ length: 256 }, (_, i) =>
    packed(colours[3 * i] ?? 0, colours[3 * i + 1] ?? 0, colours[3 * i + 2] ?? 0));
}

export function readPalettes(texts: Readonly<Record<string, string>>): Record<string, Palette> {
  return Object.fromEntries(Object.entries(texts).map(([name, text]) => [name, readPalette(bytes(text))]));
}

/** The place of a value between two limits, of 256. As normalize() and to_indices() of the library: a share as float32. */
export function colourIndex(value: number, [low, high]: Limits): number {
  const share = high > low ? (value - low) / (high - low) : 0.5 + 0.5 * Math.sign(value - low);
  return rint(Math.fround(clamp(share, 0, 1)) * 255);
}
