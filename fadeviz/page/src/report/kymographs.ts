// Distance-time maps with their arrivals, as fadeviz plot draws them.

import { byId, context, draw, make } from "../common/dom.js";
import { drawTimeAxis, goToClicked, stepAtTime, time, timeAxis, type TimeAxis } from "../common/charts.js";
import { clamp, count, nearest, number, rint, signed } from "../common/numbers.js";
import { followers, goTo } from "../common/playback.js";
import { stepNow } from "../common/view.js";
import { data, signedBytes, type Arrival, type KymographPanel } from "./data.js";

const { edges, panels, span } = data.signature;
const { steps } = data;
const [firstStep, lastStep] = [steps[0] ?? 0, steps.at(-1) ?? 0];
const [inmost, outmost] = [edges[0] ?? 0, edges.at(-1) ?? 1];

export const narrow = matchMedia("screen and (max-width: 740px)");

/** What is drawn in each place of a distance-time map: its width, and what moves its cursor. */
const drawn = new Map<HTMLElement, { readonly width: number; readonly moveCursor: (step: number) => void }>();

// Drawn again for another width, so that words keep their size.
const widths = new ResizeObserver(() => {
  for (const [slot, { width }] of drawn) if (Math.abs(widthOf(slot) - width) > 8) drawMap(slot);
});

const widthOf = (slot: HTMLElement): number => clamp(Math.round(slot.clientWidth), 150, 900);

function drawMap(slot: HTMLElement): void {
  const panel = panels[Number(slot.dataset.panel)];
  if (!panel) return;
  const width = widthOf(slot);
  const { figure, moveCursor } = makeKymograph(panel, width);
  drawn.set(slot, { width, moveCursor });
  slot.replaceChildren(figure);
  moveCursor(stepNow() ?? firstStep);
}

export function showKymographs(): void {
  for (const slot of document.querySelectorAll<HTMLElement>(".signature")) {
    drawMap(slot);
    widths.observe(slot);
    followers.push((step) => { drawn.get(slot)?.moveCursor(step); });
  }
  if (panels.length) showKey();
}

/** A position between the ends of the colours as a colour. */
function signedColour(value: number): string {
  const i = 3 * rint(clamp((value + span) / (2 * span), 0, 1) * 255);
  return `rgb(${signedBytes.slice(i, i + 3).join(", ")})`;
}

/** Steps to label: the first and last one and round ones, as far as their labels do not touch. */
function labelled({ place, marks }: Pick<TimeAxis, "place" | "marks">, letter: number): number[] {
  const powers = marks.filter((step) => Number.isInteger(Math.log10(step)));
  const found: number[] = [];
  for (const step of new Set([marks[0] ?? 0, marks.at(-1) ?? 0, ...powers, ...marks])) {
    const apart = (other: number) => Math.abs(place(step) - place(other));
    const room = (other: number) => ((count(step).length + count(other).length) / 2 + 1.2) * letter;
    if (found.every((other) => apart(other) > room(other))) found.push(step);
  }
  return found.sort((a, b) => a - b);
}

/** Cells of the snapshots: their ends on the axis, half-way to their neighbours; the outer ones are short. */
function cellBorders(): number[] {
  const times = steps.map(time);
  const [from, to] = [times[0] ?? 0, times.at(-1) ?? 0];
  if (times.length < 2) return [from - 0.5, from + 0.5];
  const borders = times.slice(1).map((one, i) => (one + (times[i] ?? 0)) / 2);
  const outside = (to - from) / 30;
  const start = Math.max(2 * from - (borders[0] ?? 0), from - outside);
  const end = Math.min(2 * to - (borders.at(-1) ?? 0), to + outside);
  return [start, ...borders, end];
}

/** Where things stand in the drawing of a panel. */
interface Frame {
  readonly width: number;
  readonly height: number;
  readonly left: number;
  readonly right: number;
  readonly top: number;
  readonly bottom: number;
  readonly place: (step: number) => number;
  readonly up: (depth: number) => number;
  readonly stepAt: (x: number) => number;
  readonly depthAt: (y: number) => number;
}

function makeKymograph(panel: KymographPanel, width: number) {
  const height = narrow.matches ? 150 : data.operators.length > 3 ? 144 : width > 480 ? 194 : 172;
  const [left, right, top, bottom] = [48, width - 10, 6, height - 36] as const;
  const borders = cellBorders();
  const [start, end] = [borders[0] ?? 0, borders.at(-1) ?? 1];
  const across = (value: number) => left + ((value - start) / (end - start)) * (right - left);
  const frame: Frame = {
    width, height, left, right, top, bottom,
    place: (step) => across(time(step)),
    stepAt: (x) => stepAtTime(start + ((x - left) / (right - left)) * (end - start)),
    up: (depth) => bottom - ((depth - inmost) / (outmost - inmost)) * (bottom - top),
    depthAt: (y) => inmost + ((bottom - y) / (bottom - top)) * (outmost - inmost),
  };
  const { place, up } = frame;

  const svg = draw("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": spoken(panel), tabindex: "0" });
  svg.style.setProperty("--drawn", String(width)); // for print, which shows it in another size
  svg.append(draw("rect", { class: "frame-line", x: left, y: top, width: right - left, height: bottom - top }));
  for (let depth = Math.ceil(inmost); depth <= outmost; depth += 1) {
    svg.append(draw("line", { class: "axis", x1: left - 4, x2: left, y1: up(depth), y2: up(depth) }));
    svg.append(draw("text", { x: left - 7, y: up(depth) + 4, "text-anchor": "end" }, count(depth)));
  }
  svg.append(draw("text", { "text-anchor": "middle", transform: `translate(12 ${(top + bottom) / 2}) rotate(-90)` }, height < 190 ? "inside ← radii → out" : "inside ← object radii → outside"));
  svg.append(draw("line", { class: "zero", x1: left, x2: right, y1: up(0), y2: up(0) }));
  const { marks } = timeAxis(firstStep, lastStep, place(firstStep), place(lastStep));
  drawTimeAxis(svg, { place, marks: labelled({ place, marks }, 6.4) }, bottom, right);
  const cursors = ["cursor-under", "cursor"].map((kind) => draw("line", { class: kind, y1: top, y2: bottom }));
  svg.append(...cursors);
  for (const arrival of panel.arrivals) svg.append(...arrivalMark(arrival, frame));
  const moveCursor = (step: number) => {
    for (const cursor of cursors) {
      cursor.setAttribute("x1", String(place(step)));
      cursor.setAttribute("x2", String(place(step)));
    }
  };
  goToClicked(svg, width, frame.stepAt);
  const plot = make("div", { class: "plot" }, cells(panel, frame, borders.map(across)), svg);
  addReading(plot, svg, panel, frame);
  return { figure: make("figure", { class: "chart kymograph" }, plot), moveCursor };
}

function cells(panel: KymographPanel, { width, height, left, right, top, bottom, up }: Frame, borders: readonly number[]): HTMLCanvasElement {
  const fine = 3; // canvas pixels per unit of the drawing, so that cells are crisp on any screen
  const canvas = make("canvas", { width: (right - left) * fine, height: (bottom - top) * fine, "aria-hidden": "true" });
  const box = { left: left / width, top: top / height, width: (right - left) / width, height: (bottom - top) / height };
  for (const [side, share] of Object.entries(box)) canvas.style.setProperty(side, `${100 * share}%`);
  const pen = context(canvas);
  pen.fillStyle = "rgb(219, 219, 219)"; // undefined
  pen.fillRect(0, 0, canvas.width, canvas.height);
  const [across, down] = [(x: number) => Math.round((x - left) * fine), (depth: number) => Math.round((up(depth) - top) * fine)];
  panel.value.forEach((row, at) => {
    const [x, next] = [across(borders[at] ?? 0), across(borders[at + 1] ?? 0)];
    row.forEach((value, bin) => {
      if (value === null) return;
      const [y, under] = [down(edges[bin + 1] ?? 0), down(edges[bin] ?? 0)];
      pen.fillStyle = signedColour(value);
      pen.fillRect(x, y, next - x, under - y);
    });
  });
  return canvas;
}

/** A symbol with its interval: black on a white rim, so that it is visible on every colour. */
function arrivalMark({ label, step, low, high, depth, fromStart }: Arrival, { place, up, left, right }: Frame): SVGElement[] {
  const made: SVGElement[] = [];
  const y = up(depth);
  if (low !== null) {
    const from = Math.max(left, place(Math.max(0, low)));
    const to = high === null ? right + 1 : place(high);
    for (const kind of ["bar-under", "bar"]) made.push(draw("line", { class: kind, x1: from, x2: Math.min(to, right), y1: y, y2: y }));
    if (to > right) made.push(draw("path", { class: "symbol", d: `M${right - 7} ${y - 5}l9 5l-9 5z` }));
  }
  const x = fromStart ? place(firstStep) : step === null ? Infinity : place(step);
  if (x <= right) made.push(symbol(label, fromStart, x, y));
  return made;
}

function symbol(label: string, open: boolean, x: number, y: number): SVGElement {
  const shape = label === "outline"
    ? draw("circle", { cx: x, cy: y, r: 4.6 })
    : draw("path", { d: `M${x} ${y - 5.6}l5.6 5.6l-5.6 5.6l-5.6 -5.6z` });
  shape.setAttribute("class", open ? "symbol open" : "symbol");
  return shape;
}

/** The value under the pointer, or at the place that the arrow keys move. */
function addReading(plot: HTMLElement, svg: SVGSVGElement, panel: KymographPanel, frame: Frame): void {
  const { width, height, left, right, top, bottom, place, up } = frame;
  const tip = make("div", { class: "tip screen", hidden: "" });
  const spot = draw("rect", { class: "spot", width: 9, height: 9, visibility: "hidden" });
  svg.append(spot);
  plot.append(tip);
  const cell = { at: steps.length - 1, bin: Math.floor((edges.length - 1) / 2) };
  const show = () => {
    const depth = ((edges[cell.bin] ?? 0) + (edges[cell.bin + 1] ?? 0)) / 2;
    const value = panel.value[cell.at]?.[cell.bin] ?? null;
    const step = steps[cell.at] ?? 0;
    const where = `${Number(Math.abs(depth).toFixed(2))} radii ${depth < 0 ? "inside" : "outside"}`;
    tip.textContent = `step ${count(step)}, ${where}: ${value === null ? "undefined" : signed(value)}`;
    const [x, y] = [place(step), up(depth)];
    spot.setAttribute("x", String(x - 4.5));
    spot.setAttribute("y", String(y - 4.5));
    spot.setAttribute("visibility", "visible");
    tip.hidden = false;
    // Beside the cell, and within the chart.
    const scale = plot.clientWidth / width;
    const wide = tip.offsetWidth;
    tip.style.left = `${Math.max(0, Math.min(x * scale - wide / 2, plot.clientWidth - wide))}px`;
    tip.style.top = `${y * scale + (y > height / 2 ? -tip.offsetHeight - 10 : 10)}px`;
  };
  const hide = () => {
    tip.hidden = true;
    spot.setAttribute("visibility", "hidden");
  };
  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect();
    const x = ((event.clientX - box.left) / box.width) * width;
    const y = ((event.clientY - box.top) / box.height) * height;
    if (x < left || x > right || y < top || y > bottom) {
      hide();
      return;
    }
    cell.at = nearest(steps, frame.stepAt(x));
    cell.bin = clamp(edges.findLastIndex((edge) => edge <= frame.depthAt(y)), 0, edges.length - 2);
    show();
  });
  svg.addEventListener("pointerleave", hide);
  svg.addEventListener("blur", hide);
  svg.addEventListener("focus", () => { if (svg.matches(":focus-visible")) show(); });
  svg.addEventListener("keydown", (event) => {
    const move = new Map([["ArrowLeft", [-1, 0]], ["ArrowRight", [1, 0]], ["ArrowUp", [0, 1]], ["ArrowDown", [0, -1]]]).get(event.key);
    if (event.key === "Enter") goTo(cell.at);
    else if (move) {
      cell.at = clamp(cell.at + (move[0] ?? 0), 0, steps.length - 1);
      cell.bin = clamp(cell.bin + (move[1] ?? 0), 0, edges.length - 2);
      show();
      svg.setAttribute("aria-label", tip.textContent);
    } else return;
    event.preventDefault();
  });
}

/** A panel in words. */
function spoken(panel: KymographPanel): string {
  const marks = panel.arrivals.map(({ label, step, fromStart }) =>
    fromStart ? `${label} there from the start` : `${label} arrives at step ${number(step)}`);
  const name = panel.row ? `${panel.title}, ${panel.row}` : panel.title;
  return [`${name}: ${panel.subtitle}`, ...marks, "Arrow keys read values"].join(". ");
}

/** The legend of the symbols that occur, and the bar of colours. */
function showKey(): void {
  const arrivals = panels.flatMap((panel) => panel.arrivals);
  const since = firstStep === 0 ? "before training" : "at the first snapshot";
  const entry = (text: string, ...shapes: SVGElement[]) => make("li", {}, draw("svg", { viewBox: "0 0 30 14", "aria-hidden": "true" }, ...shapes), text);
  const entries = [entry("contour", draw("line", { class: "zero", x1: 1, x2: 29, y1: 7, y2: 7 }))];
  for (const open of [false, true]) {
    for (const label of ["outline", "interior"]) {
      if (!arrivals.some((one) => one.label === label && one.fromStart === open)) continue;
      const bar = open ? [] : [draw("line", { class: "bar", x1: 2, x2: 28, y1: 7, y2: 7 })];
      entries.push(entry(open ? `${label} there ${since}` : `${label} arrives, with its interval`, ...bar, symbol(label, open, 15, 7)));
    }
  }
  byId("symbols").replaceChildren(...entries);
  const bar = context(byId<HTMLCanvasElement>("bar"));
  for (let i = 0; i < 256; i += 1) {
    bar.fillStyle = signedColour(((2 * i) / 255 - 1) * span);
    bar.fillRect(i, 0, 1, 1);
  }
}
