// Charts of curves over training.

import { draw, make } from "./dom.js";
import { clamp, count, joined, limitsOf, MINUS, nearest, number, type Limits } from "./numbers.js";
import { followers, goTo } from "./playback.js";
import { view } from "./view.js";

/** A line: its middle and its band, null where there is none. */
export interface Curve {
  readonly label: string;
  readonly role: string; // "outline", "interior", "series-N" or "operator-COLOUR-DASHES"; " like" after it: a variant of that line
  readonly steps: readonly number[];
  readonly middle: readonly (number | null)[];
  readonly low: readonly (number | null)[];
  readonly high: readonly (number | null)[];
}

export interface Panel {
  readonly title: string;
  readonly unit: string;
  readonly scale: string; // panels of the same scale share the range of their vertical axes
  readonly chance: number | null;
  readonly marks: readonly { readonly role: string; readonly step: number }[];
  readonly curves: readonly Curve[];
}

/** The range that the vertical axis of a panel has to hold; null without values. */
export function rangeOf(panel: Panel): Limits | null {
  return panel.curves
    .flatMap((curve) => [curve.middle, curve.low, curve.high])
    .reduce<Limits | null>((range, values) => joined(range, limitsOf(values)), null);
}

/** Round values between two ends: two or more, about so many. */
export function ticks(low: number, high: number, about: number): number[] {
  if (!(high > low)) return [low];
  const raw = (high - low) / about;
  const power = 10 ** Math.floor(Math.log10(raw));
  const widths = [0.5, 1, 2, 5, 10].map((factor) => factor * power);
  const enough = widths.findIndex((one) => one >= raw * 0.999);
  for (const width of widths.slice(1, enough + 1).reverse()) {
    const found = multiples(width, low, high);
    if (found.length > 1) return found;
  }
  return multiples(widths[0] ?? raw, low, high);
}

function multiples(width: number, low: number, high: number): number[] {
  const found: number[] = [];
  for (let i = Math.ceil(low / width - 1e-9); i * width <= high + width * 1e-9; i += 1) found.push(Number((i * width).toPrecision(12)));
  return found;
}

// --- the axis of steps -----------------------------------------------------------------------------------------------

export const time = (step: number): number => (view.log ? Math.log1p(step) : step);
export const stepAtTime = (value: number): number => (view.log ? Math.expm1(value) : value);

export interface TimeAxis {
  readonly place: (step: number) => number;
  readonly step: (x: number) => number;
  readonly marks: readonly number[];
}

const POWERS = [0, 1, 3, 10, 30, 100, 300, 1000, 3000, 10000, 30000, 100000, 300000, 1e6, 3e6, 1e7];

/** Where a step stands, which step stands somewhere, and the marks of the axis. */
export function timeAxis(first: number, last: number, left: number, right: number): TimeAxis {
  const low = time(first);
  const span = time(last) - low || 1;
  const place = (step: number) => left + ((time(step) - low) / span) * (right - left);
  const step = (x: number) => stepAtTime(low + ((x - left) / (right - left)) * span);
  const all = view.log ? POWERS : ticks(first, last, 5).filter(Number.isInteger);
  const marks = all.filter((one) => one >= first && one <= last);
  if (view.log && place(last) - place(marks.at(-1) ?? first) > 34) marks.push(last);
  return { place, step, marks };
}

export function drawTimeAxis(svg: SVGSVGElement, axis: Pick<TimeAxis, "place" | "marks">, bottom: number, right: number): void {
  for (const mark of axis.marks) {
    const x = axis.place(mark);
    svg.append(draw("line", { class: "axis", x1: x, x2: x, y1: bottom, y2: bottom + 4 }));
    svg.append(draw("text", { x, y: bottom + 15, "text-anchor": "middle" }, count(mark)));
  }
  const label = view.log ? "training step (log scale)" : "training step";
  svg.append(draw("text", { x: right, y: bottom + 29, "text-anchor": "end" }, label));
}

/** Goes to the step that is clicked; the chart is drawn in units of which its width has so many. */
export function goToClicked(svg: SVGSVGElement, width: number, stepAt: (x: number) => number): void {
  svg.addEventListener("click", (event) => {
    const box = svg.getBoundingClientRect();
    goTo(nearest(view.steps, stepAt(((event.clientX - box.left) / box.width) * width)));
  });
}

// --- lines -----------------------------------------------------------------------------------------------------------

const LIKE = "7 2 1 2";
const DASHES = ["", "6 3", "2 2", "9 3 2 3", "14 4", "9 2 2 2 2 2", "5 6", "1.5 4"];
const SERIES = 8;

interface Look { readonly colour: string; readonly dash: string; readonly width: number }

/** Colour and dashes of a line, so that it is told from the others without its colour as well. */
export function look(role: string): Look {
  const [main = "", variant] = role.split(" ");
  const operator = /^operator-(\d+)-(\d+)$/.exec(main); // its colour and its dashes
  if (operator) return { colour: `var(--operator-${operator[1]})`, dash: DASHES[Number(operator[2]) % DASHES.length] ?? "", width: 2 };
  const series = /^series-(\d+)$/.exec(main);
  const place = Number(series?.[1] ?? 0);
  // After eight colours the same ones come again, with other dashes.
  const dash = series ? DASHES[(place + Math.floor(place / SERIES)) % DASHES.length] ?? "" : variant ? LIKE : main === "interior" ? "6 3" : "";
  return { colour: `var(--${series ? `series-${place % SERIES}` : main})`, dash, width: variant ? 1.3 : 2 };
}

function styled<T extends SVGElement>(element: T, { colour, dash, width }: Look): T {
  element.style.stroke = colour;
  element.style.strokeDasharray = dash || "none";
  element.style.strokeWidth = String(width);
  return element;
}

function dot(x: number, y: number, colour: string, radius: number): SVGCircleElement {
  const made = draw("circle", { cx: x, cy: y, r: radius });
  made.style.fill = colour;
  return made;
}

/** Stretches of neighbours that are all there. */
export function stretches(length: number, there: (i: number) => boolean): number[][] {
  const found: number[][] = [];
  for (let i = 0; i < length; i += 1) {
    if (!there(i)) continue;
    if (i > 0 && there(i - 1)) found.at(-1)?.push(i);
    else found.push([i]);
  }
  return found;
}

/** The ends of a vertical axis for values of some range: 0 where it is near, and some room beyond the values. */
export function axisEnds(range: Limits | null): Limits {
  let [low, high] = range ?? [0, 1];
  if (low > 0 && low < 0.4 * high) low = 0;
  if (low === high) [low, high] = [low - (Math.abs(low) || 1) / 2, high + (Math.abs(high) || 1) / 2];
  const margin = (high - low) * 0.04;
  return [low === 0 ? 0 : low - margin, high + margin];
}

export function makeChart(panel: Panel, range: Limits | null): HTMLElement {
  const [width, height, right, top, bottom] = [360, 210, 346, 10, 172] as const;
  const all = [...view.steps, ...panel.curves.flatMap((line) => [line.steps[0] ?? 0, line.steps.at(-1) ?? 0])];
  const [first, last] = limitsOf(all) ?? [0, 1];
  const [low, high] = axisEnds(range);
  const scale = (value: number) => bottom - ((value - low) / (high - low)) * (bottom - top);

  const marks = ticks(low, high, 4);
  const left = 12 + 6.4 * Math.max(3, ...marks.map((mark) => String(mark).length));
  const axis = timeAxis(first, last, left, right);
  const svg = draw("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": spoken(panel) });
  for (const mark of marks) {
    const y = scale(mark);
    svg.append(draw("line", { class: "grid-line", x1: left, x2: right, y1: y, y2: y }));
    svg.append(draw("text", { x: left - 6, y: y + 4, "text-anchor": "end" }, String(mark).replace("-", MINUS)));
  }
  if (panel.chance !== null) {
    const [up, down] = [panel.chance, -panel.chance].map((value) => clamp(scale(value), top, bottom)) as [number, number];
    svg.append(draw("rect", { class: "chance", x: left, width: right - left, y: up, height: down - up }));
  }
  svg.append(draw("line", { class: "axis", x1: left, x2: right, y1: bottom, y2: bottom }));
  drawTimeAxis(svg, axis, bottom, right);
  const cursor = draw("line", { class: "cursor", y1: top, y2: bottom });
  svg.append(cursor);
  for (const { step, role } of panel.marks) {
    const x = axis.place(step);
    const mark = draw("line", { class: "half-way", x1: x, x2: x, y1: top, y2: bottom });
    mark.style.stroke = look(role).colour;
    svg.append(mark);
  }

  const point = (line: Curve, values: readonly (number | null)[], i: number) =>
    `${axis.place(line.steps[i] ?? 0).toFixed(1)},${scale(values[i] ?? 0).toFixed(1)}`;
  for (const line of panel.curves) {
    for (const part of stretches(line.steps.length, (i) => isThere(line.low, i) && isThere(line.high, i))) {
      const forth = part.map((i) => point(line, line.high, i));
      const back = part.map((i) => point(line, line.low, i)).reverse();
      const band = draw("path", { class: "band", d: `M${[...forth, ...back].join("L")}Z` });
      band.style.fill = look(line.role).colour;
      svg.append(band);
    }
  }
  const dots = panel.curves.map((line) => {
    const style = look(line.role);
    for (const part of stretches(line.steps.length, (i) => isThere(line.middle, i))) {
      svg.append(styled(draw("path", { class: "curve", d: `M${part.map((i) => point(line, line.middle, i)).join("L")}` }), style));
      // Few points, or one between gaps, are hardly visible as a line.
      if (line.steps.length <= 8 || part.length === 1) {
        for (const i of part) svg.append(dot(axis.place(line.steps[i] ?? 0), scale(line.middle[i] ?? 0), style.colour, 2.5));
      }
    }
    const mark = dot(0, 0, style.colour, 3.5);
    mark.setAttribute("class", "now");
    svg.append(mark);
    const value = make("b", { class: "now" });
    // Room for the longest value, so that no step breaks the legend anew and moves what is below. The point is narrow.
    value.style.minWidth = `${Math.max(...line.middle.map((one) => number(one).length)) - 0.4}ch`;
    const sample = draw("svg", { viewBox: "0 0 22 8", "aria-hidden": "true" }, styled(draw("line", { x1: 0, x2: 22, y1: 4, y2: 4 }), style));
    return { line, mark, value, entry: make("li", {}, sample, line.label, value) };
  });
  followers.push((step) => {
    const x = axis.place(step);
    cursor.setAttribute("x1", String(x));
    cursor.setAttribute("x2", String(x));
    for (const { line, mark, value } of dots) {
      // Between two tests the value of the last one is shown.
      const at = line.steps.findLastIndex((one) => one <= step);
      const now = line.middle[at] ?? null;
      value.textContent = number(now);
      mark.setAttribute("visibility", now === null ? "hidden" : "visible");
      if (now === null) continue;
      mark.setAttribute("cx", String(axis.place(line.steps[at] ?? 0)));
      mark.setAttribute("cy", String(scale(now)));
    }
  });
  goToClicked(svg, width, (x) => axis.step(x));
  return make("figure", { class: "chart" },
    make("figcaption", {}, panel.title, make("span", {}, panel.unit ? `, ${panel.unit}` : "")),
    make("div", { class: "plot" }, svg),
    make("ul", { class: "legend" }, ...dots.map(({ entry }) => entry)));
}

const isThere = (values: readonly (number | null)[], i: number): boolean => (values[i] ?? null) !== null;

/** A chart in words. */
function spoken(panel: Panel): string {
  const lines = panel.curves.map((line) => {
    const known = line.middle.flatMap((value, i) => (value === null ? [] : [[line.steps[i] ?? 0, value] as const]));
    const [from, to] = [known[0], known.at(-1)];
    if (!from || !to) return `${line.label}: nothing`;
    return `${line.label}: ${number(from[1])} at step ${from[0]}, ${number(to[1])} at step ${to[0]}`;
  });
  return `${[panel.title, panel.unit].filter(Boolean).join(", ")}. ${lines.join("; ")}`;
}
