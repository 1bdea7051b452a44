// The charts of the report: a group for each kind of measure.

import { byId, fill, make } from "../common/dom.js";
import { makeChart, rangeOf } from "../common/charts.js";
import { capital, joined, type Limits } from "../common/numbers.js";
import { follow, followers } from "../common/playback.js";
import { data, type Group } from "./data.js";
import { narrow, showKymographs } from "./kymographs.js";

const unfolded = new Set<string>(); // groups of curves that a reader has opened on a phone

/** Draws all charts anew, as after a change of the step axis. */
export function showCharts(): void {
  followers.length = 0;
  byId("figures").replaceChildren(...data.groups.map(makeGroup));
  showKymographs();
  follow();
}

function makeGroup(group: Group): HTMLElement {
  const ranges = new Map<string, Limits | null>();
  for (const panel of group.panels) ranges.set(panel.scale, joined(ranges.get(panel.scale) ?? null, rangeOf(panel)));
  const charts = make("div", { class: "charts curves" }, ...group.panels.map((panel) => makeChart(panel, ranges.get(panel.scale) ?? null)));
  const meanings = make("dl", {}, ...group.measures.map(([name, meaning]) =>
    make("div", {}, make("dt", {}, name), make("dd", {}, meaning)))); // the style sheet sets the colons
  const heading = make("h3", {}, capital(group.name), make("span", {}, `: ${group.meaning}`));
  const rest = [
    ...(group.note ? [make("p", { class: "quiet note" }, group.note)] : []), charts,
    ...(group.measures.length ? [make("details", { class: "meanings" }, make("summary", {}, "What these are"), meanings)] : []),
  ];
  const section = make("section", { class: "group", "aria-label": capital(group.name) });
  if (!narrow.matches) return fill(section, {}, heading, ...rest);
  // On a phone a group is a line that opens.
  const fold = make("details", { class: "fold" }, make("summary", {}, heading), ...rest);
  fold.open = unfolded.has(group.name);
  fold.addEventListener("toggle", () => {
    if (fold.open) unfolded.add(group.name);
    else unfolded.delete(group.name);
  });
  return fill(section, {}, fold);
}
