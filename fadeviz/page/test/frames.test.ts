import assert from "node:assert/strict";
import { test } from "node:test";
import { colourIndex, packed, readPalette } from "../src/common/colours.js";
import { difference, pixelsOf, valuesFrame } from "../src/common/frames.js";
import { decode, frameOf, differenceLimits } from "../src/report/sequences.js";

const ramp = readPalette(Array.from({ length: 768 }, (_, i) => Math.floor(i / 3)));

test("values are placed between the limits, and outside of them at the ends", () => {
  assert.deepEqual([-1, 0, 1, 2, 5].map((value) => colourIndex(value, [0, 2])), [0, 0, 128, 255, 255]);
  assert.deepEqual([4, 5, 6].map((value) => colourIndex(value, [5, 5])), [0, 128, 255]);
});

test("cells that are not finite have a colour of their own", () => {
  const frame = valuesFrame([1, 4], [0, NaN, 1, -Infinity]);
  const bad = packed(9, 9, 9);
  assert.deepEqual([...pixelsOf(frame, frame.own, ramp, bad)], [packed(0, 0, 0), bad, packed(255, 255, 255), bad]);
  assert.deepEqual([...pixelsOf(valuesFrame([1, 1], [NaN]), null, ramp, bad)], [bad]);
});

test("a difference needs maps of one size, and is not finite where one of them is not", () => {
  const one = valuesFrame([1, 3], [5, NaN, 2]);
  const two = valuesFrame([1, 3], [1, 1, 4]);
  assert.deepEqual(Array.from(difference(one, two)?.values ?? []), [4, NaN, -2]);
  assert.deepEqual(difference(one, two)?.own, [-2, 4]);
  assert.equal(difference(one, valuesFrame([3, 1], [1, 1, 1])), null);
});

/** The slow inverse of decode: what is stored of a movie whose later frames are differences. */
function encode(movie: readonly (readonly number[])[], [height, width]: readonly [number, number]): Uint8Array {
  const stored: number[] = movie.map((_, frame) => (frame > 0 ? 1 : 0));
  movie.forEach((levels, frame) => {
    const rest = levels.map((level, cell) => level - (frame > 0 ? movie[frame - 1]?.[cell] ?? 0 : 0));
    for (let y = 0; y < height; y += 1) {
      for (let x = 0; x < width; x += 1) {
        const at = (dy: number, dx: number) => rest[(y - dy) * width + x - dx] ?? 0;
        let guess = 0;
        if (y === 0 && x > 0) guess = at(0, 1);
        else if (y > 0 && x === 0) guess = at(1, 0);
        else if (y > 0) {
          const [left, above, corner] = [at(0, 1), at(1, 0), at(1, 1)];
          if (corner >= Math.max(left, above)) guess = Math.min(left, above);
          else if (corner <= Math.min(left, above)) guess = Math.max(left, above);
          else guess = left + above - corner;
        }
        stored.push(((rest[y * width + x] ?? 0) - guess) & 255);
      }
    }
  });
  return Uint8Array.from(stored);
}

test("packed frames come back, the later ones from those before them", () => {
  let seed = 7;
  const random = () => { seed = (seed * 1103515245 + 12345) % 2147483648; return Math.floor((seed / 2147483648) * 256); };
  const size = [5, 7] as const;
  const movie = Array.from({ length: 4 }, () => Array.from({ length: 35 }, random));
  const { levels, holes } = decode(encode(movie, size), size, 4, false);
  assert.deepEqual([...levels], movie.flat());
  assert.equal(holes, null);
});

test("levels are values between the limits of their frame", () => {
  const sequence = { size: [1, 2] as const, low: [0, null], high: [2, null], run: 0, image: 0, element: "", own: [0, 2] as const, holes: true };
  const levels = { levels: Uint8Array.from([0, 255, 3, 4]), holes: Uint8Array.from([0b01000000]) };
  assert.deepEqual(Array.from(frameOf(sequence, levels, 0).values), [0, NaN]);
  assert.equal(frameOf(sequence, levels, 1).own, null);
  const other = { ...levels, holes: null };
  assert.deepEqual(differenceLimits(sequence, other, { ...sequence, high: [4, null] }, other, 1), [-2, 0]);
});
