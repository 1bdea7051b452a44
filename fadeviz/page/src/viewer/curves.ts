// What the trainings logged, as curves that follow the step and the training.

import { byId } from "../common/dom.js";
import { makeChart, rangeOf, type Panel } from "../common/charts.js";
import { follow, followers } from "../common/playback.js";
import { view } from "../common/view.js";
import { ask, isAway, Refused } from "./server.js";
import { detailsOf, labelTexts } from "./runs.js";
import { data, entries, state, type ListEntry, type Logged } from "./state.js";

interface Known extends Logged { readonly entry: ListEntry | undefined; readonly at: number }

const logged = new Map<string, Known>();
const OFTEN = 3000; // ms between two readings of a log that grows

let timer = 0;

/** Fetches what was logged of the runs shown, where it may have changed, and draws it. */
export async function loadCurves(): Promise<void> {
  clearTimeout(timer);
  const wanted = state.runs.filter((id) => entries.has(id) && logged.get(id)?.entry !== entries.get(id));
  const early = wanted.filter((id) => performance.now() - (logged.get(id)?.at ?? -Infinity) < OFTEN);
  if (early.length) timer = window.setTimeout(() => { void loadCurves(); }, OFTEN);
  await Promise.all(wanted.filter((id) => !early.includes(id)).map(async (id) => {
    const entry = entries.get(id);
    try {
      logged.set(id, { ...await ask<Logged>(`api/run/${id}/logged`), entry, at: performance.now() });
    } catch (error) {
      if (!isAway(error)) throw error;
      if (error instanceof Refused) logged.set(id, { curves: {}, leftOut: 0, entry, at: performance.now() });
    }
  }));
  showCurves();
}

/** A panel for each name that was logged, with a line for each run that logged it. */
export function curvePanels(): Panel[] {
  const names = [...new Set(state.runs.flatMap((id) => Object.keys(logged.get(id)?.curves ?? {})))];
  const texts = labelTexts();
  return names.map((name): Panel => ({
    title: data.metrics[name]?.title ?? name,
    unit: data.metrics[name]?.unit ?? "",
    scale: name,
    marks: [],
    chance: null,
    curves: state.runs.flatMap((id, place) => {
      const curve = logged.get(id)?.curves[name];
      if (!curve?.middle.some((one) => one !== null)) return [];
      return [{ ...curve, label: texts[place] ?? id, role: `operator-${detailsOf(id)?.colour ?? place % 8}-${place}` }];
    }),
  })).filter((panel) => panel.curves.length);
}

export function showCurves(): void {
  followers.length = 0;
  const panels = curvePanels();
  const section = byId("logged");
  section.hidden = !panels.length || !view.steps.length;
  if (section.hidden) return;
  byId("figures").replaceChildren(...panels.map((panel) => makeChart(panel, rangeOf(panel))));
  follow();
}
