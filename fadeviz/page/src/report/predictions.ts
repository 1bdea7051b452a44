// Predictions: the classes or alphas of the image at the step shown; the slider is that of the maps, once more.

import { byId, draw, input, make, select, setOptions } from "../common/dom.js";
import { putPixels } from "../common/frames.js";
import { count } from "../common/numbers.js";
import { goTo } from "../common/playback.js";
import { readPalette, type Palette } from "../common/colours.js";
import { arrangeTiles } from "../common/rows.js";
import { mapTile, pictureTile, type Tile } from "../common/tiles.js";
import { stepNow, view } from "../common/view.js";
import { data, type Predictions } from "./data.js";
import { imageEntries, noRun, runOf, seedText, setImage } from "./selection.js";
import { unpack, type Levels } from "./sequences.js";

interface Shown { readonly tile: Tile; readonly levels: Levels; readonly size: readonly [number, number] }

let shown: Shown[] = [];
let name = ""; // of the image of these tiles: the chosen one, as soon as it is unpacked
let turn = 0;

export async function showPredictions(): Promise<void> {
  const { predictions } = data;
  const image = data.images[view.image];
  if (!predictions || !image) return;
  turn += 1;
  const mine = turn;
  const chosen = view.image;
  const truth = predictions.truths[chosen];
  const elements: HTMLElement[] = [];
  const made: Shown[] = [];
  if (truth) {
    const tile = pictureTile({ name: `True ${image.matte ? "alpha" : "mask"}`, source: truth, alt: `Truth of ${image.name}`, caption: "", observed: image, contoured: false, pixelated: true });
    tile.over.svg.remove();
    elements.push(tile.element);
  }
  for (const operator of data.operators) {
    const run = runOf(operator);
    const sequence = predictions.sequences.find((one) => one.run === run?.run && one.image === chosen);
    const missing = sequence ? [] : [run ? "no predictions of this image" : noRun()];
    const tile = mapTile({ id: "", name: operator.title, extra: seedText(run), observed: image, missing });
    tile.scale.hidden = true;
    if (!predictions.outlined) tile.over.svg.remove();
    if (sequence) made.push({ tile, levels: await unpack(sequence, data.steps.length), size: sequence.size });
    elements.push(tile.element);
  }
  if (mine !== turn) return;
  shown = made;
  name = image.name;
  byId("prediction-tiles").replaceChildren(...elements);
  arrange();
  select("prediction-image").value = String(chosen);
  showPredictionStep();
}

function arrange(): void {
  arrangeTiles(byId("prediction-tiles"), data.predictions?.truths[view.image] ? 1 : 0);
}

let palette: Palette = new Uint32Array();

export function showPredictionStep(): void {
  const step = stepNow();
  if (!data.predictions || step === null || !name) return;
  const text = `step ${count(step)}`;
  input("prediction-slider").value = String(view.at);
  input("prediction-slider").setAttribute("aria-valuetext", `step ${step}`);
  byId("prediction-step").textContent = text;
  byId("prediction-caption").textContent = `${name}, ${text}.`;
  for (const { tile, levels, size } of shown) {
    if (!tile.canvas) continue;
    const area = size[0] * size[1];
    const frame = levels.levels.subarray(view.at * area, (view.at + 1) * area);
    putPixels(tile.canvas, size, Uint32Array.from(frame, (level) => palette[level] ?? 0));
    tile.canvas.setAttribute("aria-label", `${tile.title}, prediction at step ${step}`);
  }
}

export function startPredictions(): void {
  if (!data.predictions) return;
  palette = readPalette(data.predictions.colours);
  byId("predictions").hidden = false;
  setOptions(select("prediction-image"), imageEntries(), view.image);
  select("prediction-image").addEventListener("change", () => { setImage(Number(select("prediction-image").value)); });
  new ResizeObserver(arrange).observe(byId("predictions"));
  const slider = input("prediction-slider");
  slider.max = String(data.steps.length - 1);
  slider.addEventListener("input", () => { goTo(Number(slider.value)); });
  byId("prediction-legend").replaceChildren(...data.predictions.legend.map((entry) => legendEntry(entry, data.predictions?.colours ?? [])));
}

function legendEntry([text, index]: Predictions["legend"][number], colours: readonly number[]): HTMLElement {
  const [red, green, blue] = colours.slice(3 * index, 3 * index + 3) as [number, number, number];
  const square = draw("svg", { viewBox: "0 0 10 10", width: 10, height: 10, "aria-hidden": "true" },
    draw("rect", { width: 10, height: 10, fill: `rgb(${red}, ${green}, ${blue})` }));
  return make("li", {}, square, text);
}
