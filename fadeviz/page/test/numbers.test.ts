import assert from "node:assert/strict";
import { test } from "node:test";
import { clamp, exact, joined, limitsOf, nearest, number, plain, rint, symmetric } from "../src/common/numbers.js";

test("numbers have three significant digits and a true minus sign", () => {
  const texts = [0, 7, -12, 999, 0.5, -0.04567, 1234.5, 1e-9, 123456789012, NaN, null].map((one) => number(one));
  assert.deepEqual(texts, ["0", "7", "\u221212", "999", "0.500", "\u22120.0457", "1,235", "1.00e\u22129", "1.23e11", "–", "–"]);
});

test("plain is the shortest decimal that is that float32", () => {
  for (const value of [0.1, 1 / 3, 16777216, 1e-42, 3.4e38, -2.5]) {
    const float = Math.fround(value);
    const text = plain(float);
    assert.equal(Math.fround(Number(text)), float);
    const digits = Number(text).toExponential().replace(/e.*|[-.]/g, "").length;
    if (digits > 1) assert.notEqual(Math.fround(Number(float.toPrecision(digits - 1))), float);
  }
  assert.equal(exact(-2.5), "\u22122.5");
});

test("halves are rounded to even", () => {
  assert.deepEqual([0.5, 1.5, 2.5, -0.5, -1.5, 2.4, 2.6].map(rint), [0, 2, 2, 0, -2, 2, 3]);
});

test("limits leave out what is not finite", () => {
  assert.deepEqual(limitsOf([3, NaN, -1, Infinity, null, 2]), [-1, 3]);
  assert.equal(limitsOf([NaN, -Infinity, null]), null);
  assert.deepEqual(joined([0, 1], [-2, 0.5]), [-2, 1]);
  assert.deepEqual(joined(null, [1, 2]), [1, 2]);
  assert.deepEqual(symmetric([-1, 3]), [-3, 3]);
  assert.deepEqual([clamp(-1, 0, 2), clamp(1, 0, 2), clamp(5, 0, 2)], [0, 1, 2]);
});

test("the nearest of recorded steps, of two equally near the earlier one", () => {
  const steps = [0, 10, 20, 100];
  assert.deepEqual([-5, 4, 5, 6, 61, 1e9].map((step) => nearest(steps, step)), [0, 0, 0, 1, 3, 3]);
});
