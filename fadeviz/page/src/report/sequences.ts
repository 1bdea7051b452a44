// Sequences: the maps of one run and image at all steps, unpacked (the inverse of codec.py).

import { byId } from "../common/dom.js";
import { bytes } from "../common/colours.js";
import { difference, type Size, type Values } from "../common/frames.js";
import { joined, type Limits } from "../common/numbers.js";
import type { Sequence } from "./data.js";

/** 256 levels of each frame; where a map is not finite, a bit of holes is set. */
export interface Levels {
  readonly levels: Uint8Array;
  readonly holes: Uint8Array | null;
}

const decoded = new Map<string, Promise<Levels>>(); // element id -> levels; unpacked once, when first shown

type Packed = Pick<Sequence, "element" | "size" | "holes">;

/** The levels of a sequence of so many steps. */
export function unpack(sequence: Packed, steps: number): Promise<Levels> {
  const known = decoded.get(sequence.element);
  if (known) return known;
  const found = inflate(bytes(byId(sequence.element).textContent ?? "")).then((raw) => decode(raw, sequence.size, steps, sequence.holes));
  decoded.set(sequence.element, found);
  return found;
}

async function inflate(packed: Uint8Array<ArrayBuffer>): Promise<Uint8Array> {
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

/** Adds what is predicted of each cell, from the frame and the one before it, to what is stored of it. */
export function decode(raw: Uint8Array, [height, width]: Size, steps: number, holes: boolean): Levels {
  const area = height * width;
  const levels = raw.subarray(steps, steps + steps * area);
  const rest = new Int16Array(area); // the predicted values: the frame, or its difference to the previous one
  const at = (cells: ArrayLike<number>, cell: number) => cells[cell] ?? 0;
  for (let frame = 0; frame < steps; frame += 1) {
    const after = raw[frame] === 1 && frame > 0;
    const start = frame * area;
    for (let y = 0, cell = 0; y < height; y += 1) {
      for (let x = 0; x < width; x += 1, cell += 1) {
        let guess;
        if (y === 0) {
          guess = x === 0 ? 0 : at(rest, cell - 1);
        } else if (x === 0) {
          guess = at(rest, cell - width);
        } else {
          const left = at(rest, cell - 1);
          const above = at(rest, cell - width);
          const low = Math.min(left, above);
          const high = Math.max(left, above);
          guess = Math.min(high, Math.max(low, left + above - at(rest, cell - width - 1)));
        }
        const before = after ? at(levels, start - area + cell) : 0;
        const level = (at(levels, start + cell) + guess + before) & 255;
        levels[start + cell] = level;
        rest[cell] = level - before;
      }
    }
  }
  return { levels, holes: holes ? raw.subarray(steps * (area + 1)) : null };
}

const isHole = (holes: Uint8Array | null, cell: number): boolean =>
  holes !== null && ((holes[cell >> 3] ?? 0) & (128 >> (cell & 7))) !== 0;

/** The limits of a frame; null if none of its cells is finite. */
function frameLimits(sequence: Pick<Sequence, "low" | "high">, at: number): Limits | null {
  const [low, high] = [sequence.low[at] ?? null, sequence.high[at] ?? null];
  return low === null || high === null ? null : [Math.fround(low), Math.fround(high)];
}

/** The map at a step, by its index: values exact to 1/510 of the frame's range. */
export function frameOf(sequence: Pick<Sequence, "low" | "high" | "size">, { levels, holes }: Levels, at: number): Values {
  const area = sequence.size[0] * sequence.size[1];
  const own = frameLimits(sequence, at);
  const values = new Float64Array(area).fill(NaN);
  if (own !== null) {
    const [low, high] = own;
    for (let cell = 0; cell < area; cell += 1) {
      if (!isHole(holes, at * area + cell)) values[cell] = low + ((levels[at * area + cell] ?? 0) / 255) * (high - low);
    }
  }
  return { size: sequence.size, values, own };
}

/** Least and greatest of one sequence less another over all steps. */
export function differenceLimits(one: Sequence, ones: Levels, other: Sequence, others: Levels, steps: number): Limits | null {
  let limits: Limits | null = null;
  for (let at = 0; at < steps; at += 1) {
    const frame = difference(frameOf(one, ones, at), frameOf(other, others, at));
    if (frame === null) return null;
    limits = joined(limits, frame.own);
  }
  return limits;
}

