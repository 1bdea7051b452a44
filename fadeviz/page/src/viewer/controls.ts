// The controls of the maps, and what is said of the runs that are shown.

import { button, byId, input, make, select, setOptions, setRadio, type Entry } from "../common/dom.js";
import { setPlaying } from "../common/playback.js";
import { title } from "../common/numbers.js";
import { view } from "../common/view.js";
import { linkTo } from "./links.js";
import { metricText, progressText } from "./list.js";
import { allLayers, detailsOf, kindOf, labels, labelTexts, layerOf, opened } from "./runs.js";
import { data, entries, isActive, PREDICTION, state, statusClass } from "./state.js";

const FEW = 3; // runs of which all is said above their maps
const notNull = <T>(one: T | null): one is T => one !== null;

/** Chooses what is left open, and fills the lists with what the runs have. */
export function showControls(): void {
  const layers = allLayers();
  const details = state.runs.map(detailsOf).filter(notNull);
  if (!layers.some(({ name }) => name === view.layer)) {
    const figure = details.find((one) => one.layers.some(({ name }) => name === one.figureLayer))?.figureLayer;
    view.layer = figure ?? layers[Math.max(0, layers.length - 2)]?.name ?? view.layer;
  }
  setOptions(select("layer"), layers.map(({ name, kinds }): Entry => {
    const size = Object.values(kinds)[0]?.calls[0];
    return [name, size ? `${name}, ${size.join("×")}` : name];
  }), view.layer);

  const recorded = new Set(state.runs.flatMap((id) => Object.keys(layerOf(id)?.kinds ?? {})));
  const kinds = Object.keys(data.kinds).filter((kind) => recorded.has(kind));
  if (details.some((one) => one.predictions)) kinds.push(PREDICTION);
  if (!kinds.includes(view.kind)) view.kind = kinds[0] ?? view.kind;
  setOptions(select("kind"), kinds.map((kind) => [kind, title(kind)]), view.kind);
  const drawn = view.kind !== PREDICTION;
  select("layer").disabled = !drawn;
  select("palette").disabled = !drawn; // predictions have colours of their own
  for (const radio of document.querySelectorAll<HTMLInputElement>("input[name=scope]")) radio.disabled = !drawn;

  const found = state.runs.map(kindOf).filter(notNull);
  const calls = [...new Set(found.flatMap((kind) => Object.keys(kind.calls)))].sort((a, b) => Number(a) - Number(b));
  if (calls.length && !calls.includes(String(state.call))) state.call = Number(calls[0]);
  setOptions(select("call"), calls.map((call): Entry => [call, `${call}, ${found.find((kind) => call in kind.calls)?.calls[call]?.join("×") ?? ""}`]), state.call);
  byId("call-label").hidden = calls.length < 2 || !drawn;

  const images = state.runs.map((id) => opened.get(id)?.images?.images ?? []).reduce((most, one) => (one.length > most.length ? one : most), []);
  const most = Math.max(0, images.length, ...found.filter(() => view.kind !== "constant").map((kind) => kind.images));
  if (most && view.image >= most) view.image = 0;
  setOptions(select("image"), Array.from({ length: most }, (_, i): Entry => [String(i), images[i]?.name ?? `image ${i}`]), view.image);
  select("image").disabled = view.kind === "constant";

  const channels = Math.max(0, ...found.map((kind) => kind.channels ?? 0));
  byId("channel-label").hidden = !channels || !drawn;
  if (channels && state.channel >= channels) state.channel = 0;
  input("channel").max = String(Math.max(0, channels - 1));
  byId("channels").textContent = channels ? `of ${channels}` : "";
  if (document.activeElement !== input("channel")) input("channel").value = String(state.channel);
  byId("viewer").classList.toggle("empty", !view.steps.length); // nothing to choose from, or not yet
  button("play").disabled = view.steps.length < 2;
  button("save").disabled = !view.steps.length;
}

/** The runs that are shown, with how far they are. */
export function showShown(): void {
  const names = labels();
  const different = [...new Set(names.map(([name]) => name))];
  const heading = different.length ? different.slice(0, 4).join(", ") + (different.length > 4 ? " …" : "") : "Runs";
  byId("heading").textContent = heading;
  document.title = different.length ? `${heading} · fadeviz` : "fadeviz";
  const wanted = JSON.stringify([names, state.runs.map((id) => entries.get(id) ?? id)]);
  const list = byId("shown");
  if (list.dataset.made === wanted) return;
  list.dataset.made = wanted;
  list.replaceChildren(...state.runs.map((id, place) => {
    const entry = entries.get(id);
    const [name, extra] = names[place] ?? [id, ""];
    const remove = make("button", { type: "button", "aria-label": `Close ${name} ${extra}`, title: "Close" }, "×");
    remove.addEventListener("click", () => { location.hash = linkTo(state.runs.filter((one) => one !== id)); });
    const badge = make("span", { class: statusClass(entry?.status ?? "gone") }, entry?.status ?? "not there");
    const facts = entry ? [entry.place === extra ? "" : entry.place, progressText(entry), metricText(entry)].filter(Boolean) : [];
    // Of many runs, the list says more: their maps should not be pushed off the screen.
    const far = state.runs.length <= FEW || !entry ? facts : isActive(entry) ? [progressText(entry)] : [];
    return make("li", { title: far.length < facts.length ? facts.join(" · ") : "" }, make("span", {}, make("b", {}, name), extra ? ` ${extra}` : ""), badge,
      make("span", { class: "far" }, far.join(" · ")), remove);
  }));
  byId("following").hidden = !state.runs.some((id) => isActive(entries.get(id)));
}

/** What a reader has to know of the runs: damage, why a run ended, images that differ or are lost. */
export function showNotes(): void {
  const names = labelTexts();
  const notes: string[] = [];
  const digests = new Map<string, string[]>();
  state.runs.forEach((id, place) => {
    const entry = entries.get(id);
    const one = opened.get(id);
    const name = names[place] ?? id;
    if (entry?.status === "stopped") notes.push(`${name}: its process ended without reporting a result.`);
    if (entry?.message && entry.status !== "damaged" && entry.status !== "finished") notes.push(`${name}: ${entry.message}`);
    for (const broken of one?.details?.broken ?? []) notes.push(`${name}: ${broken}`);
    if (one?.images?.lost) notes.push(`${name}: ${one.images.lost}`);
    const digest = one?.images?.images[view.image]?.digest;
    if (digest) digests.set(digest, [...(digests.get(digest) ?? []), name]);
  });
  if (digests.size > 1) {
    notes.push(`These runs did not observe the same image ${view.image}: ${[...digests.values()].map((some) => some.join(" and ")).join("; ")}. The input is that of the first.`);
  }
  byId("notes").replaceChildren(...notes.map((text) => make("li", {}, text)));
}

/** The controls as the view has it, after a link was opened. */
export function showChosen(): void {
  setPlaying(false);
  input("follow").checked = state.follow;
  input("contour").checked = view.contour;
  input("log").checked = view.log;
  select("palette").value = view.palette;
  setRadio("scope", view.scope);
}
