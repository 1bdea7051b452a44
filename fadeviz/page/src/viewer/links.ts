// The part of the address after #: what is shown, so that a link or a bookmark opens it again.

import { byId } from "../common/dom.js";
import { asArrangement, asScope, stepNow, view } from "../common/view.js";
import { colours, FILTERS, state } from "./state.js";

/** The address of some runs, with what else is chosen. */
export function linkTo(ids: readonly string[]): string {
  const values = new URLSearchParams();
  const put = (name: string, value: string | number, usual: string | number) => { if (value !== usual) values.set(name, String(value)); };
  if (ids.length) {
    put("runs", ids.join(","), "");
    put("layer", view.layer, "");
    put("kind", view.kind, "");
    put("call", state.call, 0);
    put("image", view.image, 0);
    put("channel", state.channel, 0);
    const step = stepNow();
    if (step !== null && !(state.follow && view.at === view.steps.length - 1)) values.set("step", String(step));
    put("colours", view.scope, "frame");
    put("map", view.palette, "gray");
    put("contour", view.contour ? 1 : 0, 0);
    put("log", view.log ? 1 : 0, 0);
    put("two", view.arrangement, "side");
    if (view.arrangement !== "side") {
      values.set("pair", view.pair.join(","));
      put("divider", view.divider, 50);
    }
    for (const id of ids) if (state.own[id]) values.set(`layer.${id}`, state.own[id]);
  }
  put("search", state.search, "");
  for (const key of FILTERS) put(key, state.filters[key], "");
  put("sort", `${state.down ? "-" : ""}${state.sort}`, "place");
  return `#${values}`;
}

let timer = 0;
let known = location.hash; // what this page read or wrote last

/** Writes the address without a new entry in the history. */
export function writeLink(link: string): void {
  history.replaceState(null, "", link);
  known = location.hash;
}

/** Keeps the address up to date; not at every frame, as browsers limit how often. */
export function keepLink(): void {
  clearTimeout(timer);
  timer = window.setTimeout(() => {
    if (location.hash !== known) return; // the reader went back or on, and what is there now has yet to be read
    const link = linkTo(state.runs);
    if (link !== location.hash && !(link === "#" && !location.hash)) writeLink(link);
    byId<HTMLAnchorElement>("back").href = linkTo([]);
  }, 200);
}

const ID = /^[0-9a-f]{12}$/;

/** Takes over what the address says. Names in it are compared with those of the runs, and shown as text alone. */
export function readLink(sorts: readonly string[]): void {
  known = location.hash;
  const values = new URLSearchParams(location.hash.slice(1));
  const text = (name: string) => values.get(name) ?? "";
  const whole = (name: string, usual = 0) => (/^\d{1,12}$/.test(text(name)) ? Number(text(name)) : usual);
  const ids = (name: string) => [...new Set(text(name).split(",").filter((id) => ID.test(id)))];
  const sort = values.get("sort") ?? "place";
  state.search = text("search");
  for (const key of FILTERS) state.filters[key] = text(key);
  state.down = sort.startsWith("-");
  state.sort = sorts.find((key) => key === sort.replace("-", "")) ?? "place";
  state.runs = ids("runs");
  if (!state.runs.length) return;
  view.layer = text("layer");
  view.kind = text("kind");
  state.call = whole("call");
  view.image = whole("image");
  state.channel = whole("channel");
  view.scope = asScope(values.get("colours"));
  view.palette = text("map") in colours.palettes ? text("map") : "gray";
  view.contour = text("contour") === "1";
  view.log = text("log") === "1";
  view.arrangement = asArrangement(values.get("two"));
  const [first = "", second = ""] = ids("pair");
  view.pair = [first, second];
  view.divider = Math.min(100, whole("divider", 50));
  state.follow = !values.has("step");
  state.wanted = values.has("step") ? whole("step") : null;
  state.own = {};
  for (const id of state.runs) if (values.has(`layer.${id}`)) state.own[id] = text(`layer.${id}`);
}
