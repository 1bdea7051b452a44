// What is chosen of the page: layer, kind, image and seed; and the maps that this shows.

import { byId, draw, make, select, setOptions, setRadio, type Entry } from "../common/dom.js";
import { putPixels, pixelsOf, type Values } from "../common/frames.js";
import { setCaption, setTiles, type Source } from "../common/maps.js";
import { count, number, title, type Limits } from "../common/numbers.js";
import { labelTrack } from "../common/playback.js";
import { imageName, type MapTile, type PictureTile } from "../common/tiles.js";
import { asScope, view } from "../common/view.js";
import { colours, data, type Operator, type Run, type Sequence } from "./data.js";
import { showPredictions } from "./predictions.js";
import { differenceLimits, frameOf, unpack, type Levels } from "./sequences.js";

const shownRuns = (operator: Operator): Run[] => operator.runs.filter((run) => data.shown.includes(run.run));
const seeds = [...new Set(data.operators.map(shownRuns).filter((runs) => runs.length > 1).flat().map((run) => run.seed))];
let seed = seeds[0] ?? null;

/** The run of an operator that is shown; one that has no other run is shown with any seed. */
export function runOf(operator: Operator): Run | null {
  const runs = shownRuns(operator);
  return runs.length === 1 ? runs[0] ?? null : runs.find((run) => run.seed === seed) ?? null;
}

/** What a tile says besides the operator: its seed, where there are several, and why it has none. */
export const seedText = (run: Run | null): string => (seeds.length && run && run.seed !== null ? `seed ${run.seed}` : "");
export const noRun = (): string => `no run with seed ${seed ?? "none"}`;

function mapsNow() {
  return data.maps.find((one) => one.layer === view.layer && one.kind === view.kind);
}

const idOf = (operator: Operator): string => String(data.operators.indexOf(operator));

function sequenceOf(id: string): Sequence | null {
  const operator = data.operators[Number(id)];
  const run = operator ? runOf(operator) : null;
  return mapsNow()?.sequences.find((one) => one.run === run?.run && one.image === view.image) ?? null;
}

/** What the colours of a frame span; null if it has no finite value. */
function spanOf(sequence: Sequence, { own }: Values): Limits | null {
  if (own === null || view.scope === "frame") return own;
  return view.scope === "run" ? sequence.own : mapsNow()?.shared[view.image] ?? own;
}

const steps = data.steps.length;
const unpacked = new Map<string, Levels>(); // sequences that can be shown at once

export const source: Source = {
  colours,
  async find(id, at) {
    const sequence = sequenceOf(id);
    if (!sequence) return { frame: null, limits: null, step: null, note: "" };
    const levels = unpacked.get(sequence.element) ?? await unpack(sequence, steps);
    unpacked.set(sequence.element, levels);
    const frame = frameOf(sequence, levels, at);
    return { frame, limits: spanOf(sequence, frame), step: data.steps[at] ?? null, note: "" };
  },
  async differenceLimits(first, second) {
    const [one, other] = [sequenceOf(second), sequenceOf(first)];
    if (!one || !other) return null;
    return differenceLimits(one, await unpack(one, steps), other, await unpack(other, steps), steps);
  },
  value: number,
  changed() { /* the page has no address to keep a choice in */ },
  painted: showStrip,
};

/** Shows the maps of what is chosen. */
export async function showSelection(): Promise<void> {
  const image = data.images[view.image];
  if (!image) return;
  const pictures: PictureTile[] = [
    { name: "Input", source: image.image, alt: `Input image ${image.name}`, caption: imageName(image), observed: image, contoured: true },
  ];
  if (image.matte) {
    pictures.push({ name: "True alpha", source: image.matte, alt: `True alpha of ${image.name}`, caption: "black 0, white 1", observed: image, contoured: false });
  }
  const maps = data.operators.map((operator): MapTile => {
    const run = runOf(operator);
    const sequence = sequenceOf(idOf(operator));
    const missing = sequence ? [] : [run ? `no ${title(view.kind)} of this layer` : noRun()];
    const extra = [seedText(run), sequence?.layer ?? ""].filter(Boolean).join(" ");
    return { id: idOf(operator), name: operator.title, extra, observed: image, missing };
  });
  setCaption(() => `${view.layer}. ${title(view.kind).replace(/^./, (letter) => letter.toUpperCase())}: ${data.kinds[view.kind] ?? ""}.`);
  try {
    const wanted = data.operators.map((operator) => sequenceOf(idOf(operator))).filter((one) => one !== null);
    await Promise.all(wanted.map(async (one) => { unpacked.set(one.element, await unpack(one, steps)); }));
  } catch {
    trouble("The maps cannot be unpacked in this browser. It needs DecompressionStream: Chrome 80, Firefox 113, Safari 16.4 or newer.");
    return;
  }
  await setTiles(pictures, maps);
  await showPredictions();
}

function trouble(text: string): void {
  byId("trouble").textContent = text;
  byId("trouble").hidden = false;
}

// --- the controls ----------------------------------------------------------------------------------------------------

const layers = [...new Set(data.maps.map((maps) => maps.layer))];

function setLayer(layer: string): void {
  view.layer = layer;
  const kinds = data.maps.filter((maps) => maps.layer === layer).map((maps) => maps.kind);
  if (!kinds.includes(view.kind)) view.kind = kinds[0] ?? "";
  setOptions(select("kind"), kinds.map((kind) => [kind, title(kind)]), view.kind);
}

export function setImage(image: number): void {
  view.image = (image + data.count) % data.count;
  select("image").value = String(view.image);
  void showSelection();
}

export const imageEntries = (): Entry[] => data.images.slice(0, data.count).map((image, i) => [String(i), image.name]);

export function startControls(): void {
  setOptions(select("layer"), layers.map((layer): Entry => {
    const sizes = data.maps.find((maps) => maps.layer === layer)?.sequences.map((one) => one.size.join("×"));
    return [layer, `${layer}, ${[...new Set(sizes)].join(" and ")}`];
  }), view.layer);
  setLayer(layers.includes(view.layer) ? view.layer : layers[0] ?? "");
  setOptions(select("image"), imageEntries(), view.image);
  setOptions(select("seed"), seeds.map((one, i): Entry => [String(i), one ?? "none"]), 0);
  byId("seed-label").hidden = seeds.length < 2;
  setRadio("scope", asScope(view.scope));
  select("layer").addEventListener("change", () => { setLayer(select("layer").value); void showSelection(); });
  select("kind").addEventListener("change", () => { view.kind = select("kind").value; void showSelection(); });
  select("image").addEventListener("change", () => { setImage(Number(select("image").value)); });
  select("seed").addEventListener("change", () => { seed = seeds[Number(select("seed").value)] ?? null; void showSelection(); });
  labelTrack();
}

// --- for paper -------------------------------------------------------------------------------------------------------

const STRIP = 6;
let stripOf = "";

/** Six iterations of what is selected, for paper: drawn anew when something else is selected. */
function showStrip(): void {
  const wanted = JSON.stringify([view.layer, view.kind, view.image, seed, view.scope, view.palette]);
  const image = data.images[view.image];
  if (wanted === stripOf || !image) return;
  stripOf = wanted;
  const last = Math.max(0, Math.min(STRIP, steps) - 1);
  const some = Array.from({ length: last + 1 }, (_, i) => Math.round((i * (steps - 1)) / Math.max(1, last)));
  const lines = draw("svg", { class: "overlay", viewBox: `0 0 ${image.size[1]} ${image.size[0]}`, preserveAspectRatio: "none" },
    draw("path", { class: "contour-dark", d: image.contour }), draw("path", { class: "contour-light", d: image.contour }));
  const shown = make("div", { class: "frame" }, make("img", { src: image.image, alt: "" }), lines);
  const truth = image.matte ? [make("div", { class: "frame" }, make("img", { src: image.matte, alt: "" }))] : [];
  const rows = [
    make("div", { class: "strip-row" }, make("span", {}, imageName(image)), shown, ...truth),
    make("div", { class: "strip-row" }, make("span"), ...some.map((at) => make("span", {}, `step ${count(data.steps[at] ?? 0)}`))),
  ];
  const palette = colours.palettes[view.palette] ?? colours.signed;
  for (const operator of data.operators) {
    const sequence = sequenceOf(idOf(operator));
    const levels = sequence && unpacked.get(sequence.element);
    if (!sequence || !levels) continue;
    const frames = some.map((at) => {
      const canvas = make("canvas");
      const frame = frameOf(sequence, levels, at);
      putPixels(canvas, frame.size, pixelsOf(frame, spanOf(sequence, frame), palette, colours.nonFinite));
      return canvas;
    });
    rows.push(make("div", { class: "strip-row" }, make("span", {}, operator.title), ...frames));
  }
  byId("strip").replaceChildren(...rows);
}
