// The runs that are shown: what is known of them, and which map of each is meant.

import { title } from "../common/numbers.js";
import { view } from "../common/view.js";
import { ask, isAway, Refused, type MapName } from "./server.js";
import { entries, isActive, PREDICTION, state, type Details, type Images, type KindDetails, type LayerDetails } from "./state.js";

export interface Opened {
  readonly details: Details | null;
  readonly images: Images | null;
  readonly versions: ReadonlyMap<number, string>;
  readonly problem: string;
}

export const opened = new Map<string, Opened>();

const NONE = { details: null, images: null, versions: new Map<number, string>() };

export async function load(id: string): Promise<void> {
  const known = opened.get(id);
  try {
    const details = await ask<Details>(`api/run/${id}`);
    const images = known?.details?.runId === details.runId && known.images ? known.images : await ask<Images>(`api/run/${id}/images`);
    opened.set(id, { details, images, versions: new Map(details.steps), problem: "" });
  } catch (error) {
    if (!isAway(error)) throw error;
    // What was fetched stays as it was while the server does not answer.
    if (error instanceof Refused) opened.set(id, { ...NONE, problem: error.message });
    else if (!known) opened.set(id, { ...NONE, problem: "waiting for the server" });
  }
}

export const detailsOf = (id: string): Details | null => opened.get(id)?.details ?? null;

/** Names that tell the runs apart: the operator, then the network or the seed, then the folder. */
export function labels(): (readonly [name: string, extra: string])[] {
  const all = state.runs.map((id) => {
    const { title: text, place, seed, network } = detailsOf(id) ?? entries.get(id) ?? { title: "run", place: id, seed: null, network: "" };
    return { name: text || entries.get(id)?.name || place, place, seed, network };
  });
  return all.map((one) => {
    const twins = all.filter((other) => other !== one && other.name === one.name);
    if (!twins.length) return [one.name, ""];
    if (one.network && twins.every((other) => other.network !== one.network)) return [one.name, one.network];
    if (one.seed !== null && twins.every((other) => other.seed !== one.seed)) return [one.name, `seed ${one.seed}`];
    return [one.name, one.place];
  });
}

export const labelTexts = (): string[] => labels().map(([name, extra]) => [name, extra].filter(Boolean).join(", "));

export function allLayers(): LayerDetails[] {
  const found = new Map<string, LayerDetails>();
  for (const id of state.runs) {
    for (const layer of detailsOf(id)?.layers ?? []) if (!found.has(layer.name)) found.set(layer.name, layer);
  }
  return [...found.values()];
}

/** The layer of a run that is meant by the chosen one: of its very name, or of one that differs in prefixes only. */
export function layerOf(id: string): LayerDetails | null {
  const layers = detailsOf(id)?.layers ?? [];
  const named = (name: string | undefined) => layers.find((layer) => layer.name === name);
  const bare = allLayers().find((layer) => layer.name === view.layer)?.bare;
  return named(state.own[id]) ?? named(view.layer) ?? layers.find((layer) => layer.bare === bare) ?? null;
}

/** The kind of a run's layer: its calls, images and channels; null if it was not recorded. */
export const kindOf = (id: string): KindDetails | null => layerOf(id)?.kinds[view.kind] ?? null;

/** The map of a run that is chosen; or a sentence on why there is none. */
export function mapOf(id: string): MapName | string {
  const details = detailsOf(id);
  if (!entries.has(id) && !details) return "This run is not there (any more).";
  if (!details) return opened.get(id)?.problem ?? "";
  if (!entries.has(id)) return "This run is not there any more: its folder was removed or renamed.";
  if (!details.steps.length) return isActive(entries.get(id)) ? "No snapshot yet." : "No whole snapshot.";
  if (view.kind === PREDICTION) {
    if (!details.predictions) return "no predictions were stored";
    return { kind: PREDICTION, image: view.image };
  }
  const layer = layerOf(id);
  if (!layer) return `no layer ${view.layer}`;
  const kind = layer.kinds[view.kind];
  if (!kind) return `no ${title(view.kind)} of this layer`;
  if (!(state.call in kind.calls)) return `no call ${state.call} of this layer`;
  const image = view.kind === "constant" ? 0 : view.image;
  if (image >= kind.images) return `no ${title(view.kind)} of image ${image}: recorded of the first ${kind.images}`;
  if (kind.channels !== null && state.channel >= kind.channels) return `no channel ${state.channel}: there are ${kind.channels}`;
  return { layer: layer.name, kind: view.kind, call: state.call, image, channel: kind.channels === null ? null : state.channel };
}

export function recordedSteps(): number[] {
  const all = new Set(state.runs.flatMap((id) => (detailsOf(id)?.steps ?? []).map(([step]) => step)));
  return [...all].sort((a, b) => a - b);
}

/** The last snapshot of a run that is not later than a step; null if there is none. */
export function stepOf(id: string, step: number): number | null {
  return (detailsOf(id)?.steps ?? []).findLast(([one]) => one <= step)?.[0] ?? null;
}
