// The maps of the runs that are shown, and what is fetched for them.

import { make } from "../common/dom.js";
import { isPicture, type Values } from "../common/frames.js";
import { setCaption, setTiles, type Found, type Source } from "../common/maps.js";
import { capital, count, exact, joined, limitsOf, title, type Limits } from "../common/numbers.js";
import { imageName, type MapTile, type PictureTile } from "../common/tiles.js";
import { view } from "../common/view.js";
import { ask, frameAt, isAway, query, Refused, type MapName } from "./server.js";
import { detailsOf, kindOf, labels, layerOf, mapOf, opened, stepOf } from "./runs.js";
import { colours, data, entries, PREDICTION, state } from "./state.js";

export const source: Source = {
  colours,
  find,
  differenceLimits,
  value: exact,
  painted: prefetch,
  changed() { whenChanged(); },
};

let whenChanged = (): void => { /* set by the page */ };

/** What is done when a reader has chosen something that a link should keep. */
export function onChange(given: () => void): void {
  whenChanged = given;
}

async function find(id: string, at: number): Promise<Found> {
  const map = mapOf(id);
  const step = view.steps[at] ?? 0;
  const own = stepOf(id, step);
  const none = { frame: null, limits: null, step: own };
  if (typeof map === "string" || own === null) return { ...none, note: `no snapshot up to step ${count(step)}` };
  try {
    const frame = await frameAt(id, map, own, opened.get(id)?.versions.get(own));
    const limits = isPicture(frame) ? null : await spanOf(id, frame);
    return { frame, limits, step: own, note: own === step ? "" : `of step ${count(own)}, its last one before` }; // or it is not there yet
  } catch (error) {
    if (error instanceof Refused) return { ...none, note: error.message };
    if (isAway(error)) return { ...none, note: "waiting for the server", stale: true };
    throw error;
  }
}

/** What the colours of a frame span; null if it has no finite value. */
async function spanOf(id: string, { own }: Values): Promise<Limits | null> {
  if (own === null || view.scope === "frame") return own;
  const fixed = data.fixedRanges[view.kind];
  if (fixed) return fixed;
  const ids = view.scope === "shared" ? state.runs.filter((one) => typeof mapOf(one) !== "string") : [id];
  const range = (await Promise.all(ids.map(rangeOf))).reduce(joined, null);
  if (range === null) return own;
  return view.kind === "gradient" ? [Math.min(0, range[1]), range[1]] : range;
}

// --- ranges over all steps -------------------------------------------------------------------------------------------

interface Ranges { readonly low: readonly (number | null)[]; readonly high: readonly (number | null)[] }

const kept = new Map<string, { readonly path: string; readonly of: unknown; readonly range: Promise<Limits | null> }>();

/** The range that the server says, asked again when the runs it depends on have changed. */
function askRange(key: string, path: string, of: unknown): Promise<Limits | null> {
  const known = kept.get(key);
  if (known && known.path === path && known.of === of) return known.range;
  const range = ask<Ranges>(path).then(({ low, high }) => joined(limitsOf(low), limitsOf(high)));
  range.catch(() => kept.delete(key));
  kept.set(key, { path, of, range });
  return range;
}

/** Least and greatest value of a run's map over all its steps. */
function rangeOf(id: string): Promise<Limits | null> {
  return askRange(id, `api/run/${id}/ranges?${query({ ...(mapOf(id) as MapName) })}`, detailsOf(id));
}

async function differenceLimits(first: string, second: string): Promise<Limits | null> {
  const [one, other] = [mapOf(second), mapOf(first)];
  if (typeof one === "string" || typeof other === "string") return null;
  const versions = `${detailsOf(first)?.steps.length} ${detailsOf(second)?.steps.length}`;
  try {
    return await askRange(`${first} ${second}`, `api/run/${second}/ranges?${query({ ...one, less: first, less_layer: other.layer })}`, versions);
  } catch (error) {
    if (isAway(error)) return null;
    throw error;
  }
}

/** The maps that are likely to be shown next. */
function prefetch(): void {
  for (const id of state.runs) {
    const map = mapOf(id);
    if (typeof map === "string") continue;
    for (const far of view.playing ? [1, 2, 3] : [1, -1]) {
      const step = view.steps[view.at + far];
      const own = step === undefined ? null : stepOf(id, step);
      if (own !== null) frameAt(id, map, own, opened.get(id)?.versions.get(own)).catch(() => { /* asked again when it is shown */ });
    }
  }
}

// --- tiles -----------------------------------------------------------------------------------------------------------

/** Shows the image and the maps that are chosen; whoChose is told when another layer of a run is. */
export function showTiles(whoChose: () => void): Promise<void> {
  const names = labels();
  const pictures: PictureTile[] = [];
  const owner = state.runs.find((id) => opened.get(id)?.images?.images[view.image]);
  const images = owner === undefined ? null : opened.get(owner)?.images;
  const image = images?.images[view.image];
  if (owner !== undefined && images && image && view.kind !== "constant") {
    for (const [name, what] of [["Input", "image"], [`True ${images.truth}`, "truth"]] as const) {
      const path = `api/run/${owner}/image?${query({ what, image: view.image, v: detailsOf(owner)?.runId })}`;
      const isInput = what === "image";
      pictures.push({ name, source: path, alt: `${name} of ${image.name}`, caption: isInput ? imageName(image) : "", observed: image, contoured: isInput, pixelated: name === "True mask" });
    }
  }
  const maps = state.runs.map((id, place): MapTile => {
    const map = mapOf(id);
    const own = view.kind === "constant" ? undefined : opened.get(id)?.images?.images[view.image];
    const size = typeof map === "string" ? null : kindOf(id)?.calls[state.call] ?? null;
    const [name, extra] = names[place] ?? [id, ""];
    const missing = typeof map === "string" ? [map, ...layerChoice(id, whoChose)] : [];
    return { id, name, extra, observed: own ?? { name: "", size: size ?? [3, 4], contour: "" }, missing };
  });
  setCaption(() => {
    if (!view.steps.length || !view.kind) return "";
    if (view.kind === PREDICTION) return "Prediction: what the model made of the image at this step.";
    return `${view.layer}. ${capital(title(view.kind))}: ${data.kinds[view.kind] ?? ""}.`;
  });
  return setTiles(pictures, maps);
}

/** A run that has no such layer can show another of its own beside the others. */
function layerChoice(id: string, whoChose: () => void): HTMLElement[] {
  const details = detailsOf(id);
  if (!details || !entries.has(id) || view.kind === PREDICTION || layerOf(id)) return [];
  const usable = details.layers.filter((layer) => view.kind in layer.kinds);
  if (!usable.length) return [];
  const list = make("select", { "aria-label": "Layer of this run" },
    ...["", ...usable.map((layer) => layer.name)].map((name) => make("option", { value: name }, name || "choose one of its layers")));
  list.addEventListener("change", () => {
    state.own[id] = list.value;
    whoChose();
  });
  return [list];
}
