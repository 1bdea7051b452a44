import assert from "node:assert/strict";
import { test } from "node:test";
import { axisEnds, look, rangeOf, stretches, ticks, timeAxis } from "../src/common/charts.js";
import { csv, curveRows, mapRows } from "../src/common/csv.js";
import { valuesFrame } from "../src/common/frames.js";
import { rowLengths } from "../src/common/rows.js";
import { view } from "../src/common/view.js";

test("ticks are round and within the ends", () => {
  assert.deepEqual(ticks(0, 1, 4), [0, 0.5, 1]);
  assert.deepEqual(ticks(-0.07, 0.31, 4), [0, 0.1, 0.2, 0.3]);
  assert.deepEqual(ticks(0, 3500, 5), [0, 1000, 2000, 3000]);
  assert.deepEqual(ticks(2, 2, 4), [2]);
  assert.deepEqual(ticks(0.858, 0.945, 4), [0.86, 0.88, 0.9, 0.92, 0.94]); // by 0.05 there would be one
  for (let i = 1; i < 400; i += 1) assert.ok(ticks(i / 37, (i + 1 + (i % 7)) / 37, 4).length > 1);
});

test("a vertical axis begins at 0 where that is near, and holds one value alone", () => {
  assert.equal(axisEnds([0.1, 1])[0], 0);
  assert.ok(axisEnds([0.8, 1])[0] > 0.7);
  const [low, high] = axisEnds([3, 3]);
  assert.ok(low < 3 && high > 3);
  assert.ok(axisEnds(null)[0] < axisEnds(null)[1]);
});

test("the range of a panel holds its bands", () => {
  const curve = { label: "a", role: "series-0", steps: [0, 1], middle: [1, null], low: [0.5, null], high: [2, null] };
  assert.deepEqual(rangeOf({ title: "", unit: "", scale: "", chance: null, marks: [], curves: [curve] }), [0.5, 2]);
});

test("gaps divide a curve", () => {
  const there = [true, true, false, true];
  assert.deepEqual(stretches(4, (i) => there[i] ?? false), [[0, 1], [3]]);
});

test("an axis of steps and its inverse", () => {
  for (const log of [false, true]) {
    view.log = log;
    const axis = timeAxis(0, 3000, 40, 340);
    for (const step of [0, 1, 17, 900, 3000]) assert.ok(Math.abs(axis.step(axis.place(step)) - step) < 1e-6 * (1 + step));
    assert.ok(axis.marks.every((mark) => mark >= 0 && mark <= 3000));
    assert.deepEqual(timeAxis(0, 2, 40, 340).marks.filter((mark) => !Number.isInteger(mark)), []);
  }
});

test("sixteen series look different", () => {
  const looks = Array.from({ length: 16 }, (_, i) => { const { colour, dash } = look(`series-${i}`); return `${colour} ${dash}`; });
  assert.equal(new Set(looks).size, 16);
});

test("no tile is alone in its row where that can be avoided", () => {
  assert.deepEqual(rowLengths(7, 3), [3, 2, 2]);
  assert.deepEqual(rowLengths(8, 6), [4, 4]);
  for (let total = 3; total < 40; total += 1) {
    for (let most = 3; most < 9; most += 1) {
      const lengths = rowLengths(total, most);
      assert.equal(lengths.reduce((sum, one) => sum + one, 0), total);
      assert.ok(Math.max(...lengths) <= most);
      assert.ok(Math.min(...lengths) >= 2, `${total} by ${most}`);
    }
  }
});

test("fields of CSV keep their commas, quotes and lines, and are no formulas", () => {
  assert.equal(csv(["a,b", 'c"d'], [["=1+1", -0.5], ["-0.5", null], ["x\ny", NaN]]), '"a,b","c""d"\r\n\'=1+1,-0.5\r\n-0.5,\r\n"x\ny",\r\n');
});

test("rows of curves and maps", () => {
  const curve = { label: "FADE", role: "", steps: [0, 5], middle: [1, null], low: [0, null], high: [2, null] };
  assert.deepEqual([...curveRows("AUC", "share", [curve])], [["AUC", "share", "FADE", 0, 1, 0, 2], ["AUC", "share", "FADE", 5, null, null, null]]);
  const cells = [...mapRows("FADE", 3, valuesFrame([2, 2], [1, 2, 3, 4]), (value) => value)];
  assert.deepEqual(cells, [["FADE", 3, 0, 0, 1], ["FADE", 3, 0, 1, 2], ["FADE", 3, 1, 0, 3], ["FADE", 3, 1, 1, 4]]);
});
