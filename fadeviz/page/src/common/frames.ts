// Frames: one map at one step, and its pixels.

import { context } from "./dom.js";
import { colourIndex, type Palette } from "./colours.js";
import { limitsOf, type Limits } from "./numbers.js";

export type Size = readonly [height: number, width: number];

/** A map of values; NaN and infinities are where it is not finite. */
export interface Values {
  readonly size: Size;
  readonly values: ArrayLike<number>;
  readonly own: Limits | null; // least and greatest finite value
}

/** A map that is a picture already, as predictions are. */
export interface Picture {
  readonly size: Size;
  readonly picture: CanvasImageSource;
}

export type Frame = Values | Picture;

export const isPicture = (frame: Frame): frame is Picture => "picture" in frame;

export function valuesFrame(size: Size, values: ArrayLike<number>): Values {
  return { size, values, own: limitsOf(values) };
}

/** The pixels of a frame; limits of null if it has no finite value. */
export function pixelsOf(frame: Values, limits: Limits | null, palette: Palette, nonFinite: number): Uint32Array<ArrayBuffer> {
  const pixels = new Uint32Array(frame.values.length);
  for (let cell = 0; cell < pixels.length; cell += 1) {
    const value = frame.values[cell] ?? NaN;
    pixels[cell] = limits !== null && Number.isFinite(value) ? palette[colourIndex(value, limits)] ?? nonFinite : nonFinite;
  }
  return pixels;
}

/** One map less another of the same size; null where the sizes differ. Not finite where one of the two is not. */
export function difference(one: Values, other: Values): Values | null {
  if (one.size[0] !== other.size[0] || one.size[1] !== other.size[1]) return null;
  const values = Float64Array.from({ length: one.values.length }, (_, i) => {
    const value = (one.values[i] ?? NaN) - (other.values[i] ?? NaN);
    return Number.isFinite(value) ? value : NaN;
  });
  return valuesFrame(one.size, values);
}

export function setSize(canvas: HTMLCanvasElement, [height, width]: Size): void {
  if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
}

/** Draws pixels into a canvas of their own size. */
export function putPixels(canvas: HTMLCanvasElement, size: Size, pixels: Uint32Array<ArrayBuffer>): void {
  setSize(canvas, size);
  context(canvas).putImageData(new ImageData(new Uint8ClampedArray(pixels.buffer), size[1], size[0]), 0, 0);
}

/** Draws the colours of a colour map into a canvas of 256 x 1 pixels. */
export function putRamp(canvas: HTMLCanvasElement, palette: Palette): void {
  putPixels(canvas, [1, 256], Uint32Array.from(palette));
}

export function clear(canvas: HTMLCanvasElement): void {
  context(canvas).clearRect(0, 0, canvas.width, canvas.height);
}
