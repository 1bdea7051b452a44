// The viewer: a page that lists the runs of a server and shows any of them, while they are recorded or afterwards.

import { byId, input, select } from "./common/dom.js";
import { curvesCsv, downloadText, startDownloads } from "./common/download.js";
import { paint, startMaps } from "./common/maps.js";
import { clamp, nearest, plain } from "./common/numbers.js";
import { goTo, labelTrack, startPlayback } from "./common/playback.js";
import { view } from "./common/view.js";
import { curvePanels, loadCurves, showCurves } from "./viewer/curves.js";
import { showChosen, showControls, showNotes, showShown } from "./viewer/controls.js";
import { keepLink, linkTo, readLink } from "./viewer/links.js";
import { showHead, showList, SORTS, startList } from "./viewer/list.js";
import { onChange, showTiles, source } from "./viewer/maps.js";
import { detailsOf, labels, load, mapOf, opened, recordedSteps } from "./viewer/runs.js";
import { startSaving } from "./viewer/saving.js";
import { startPolling } from "./viewer/server.js";
import { entries, state } from "./viewer/state.js";

let made = ""; // what the tiles were made for

/** Shows what was loaded: at the newest step if the page follows, else at the step that was shown. */
function refresh(): void {
  const before = view.steps[view.at];
  const atEnd = view.at >= view.steps.length - 1;
  view.steps = recordedSteps();
  const last = view.steps.length - 1;
  view.at = clamp(state.follow && atEnd && !view.playing ? last : nearest(view.steps, before ?? Infinity), 0, Math.max(0, last));
  labelTrack();
  showControls();
  const now = JSON.stringify([state.runs, labels(), state.runs.map((id) => [mapOf(id), detailsOf(id)?.runId, opened.get(id)?.images?.lost])]);
  if (now === made) void paint();
  else {
    made = now;
    void showTiles(choose);
  }
  showNotes();
  void loadCurves();
}

/** After a choice. */
function choose(): void {
  refresh();
  keepLink();
}

async function moveTo(at: number): Promise<void> {
  view.at = clamp(at, 0, Math.max(0, view.steps.length - 1));
  state.follow = view.at === view.steps.length - 1; // as long as the newest one is shown
  input("follow").checked = state.follow;
  keepLink();
  await paint();
}

function setImage(image: number): void {
  const most = select("image").options.length;
  if (!most || view.kind === "constant") return;
  view.image = (image + most) % most;
  choose();
}

let links = 0;

/** Shows what the address says: the list, or runs. */
async function followLink(): Promise<void> {
  const mine = ++links;
  readLink(SORTS);
  input("search").value = state.search;
  showHead();
  showList();
  const open = state.runs.length > 0;
  if (open && byId("viewer").hidden) window.scrollTo(0, 0); // a long list may have been scrolled
  byId("list").hidden = open;
  byId("viewer").hidden = !open;
  byId<HTMLAnchorElement>("back").href = linkTo([]);
  made = "";
  view.steps = [];
  view.at = 0;
  byId("tiles").replaceChildren();
  byId("logged").hidden = true;
  showChosen();
  showShown();
  if (!open) return;
  await Promise.all(state.runs.filter((id) => entries.has(id)).map(load));
  if (mine !== links) return; // the reader went back or on in the meantime
  view.steps = recordedSteps();
  view.at = state.wanted === null ? Math.max(0, view.steps.length - 1) : nearest(view.steps, state.wanted);
  showShown();
  refresh();
  keepLink();
}

// --- what happens to the runs ----------------------------------------------------------------------------------------

function changed(ids: readonly string[], gone: ReadonlyMap<string, string>): void {
  if (ids.length || gone.size || !state.started) {
    followRenamed(gone, ids);
    showList();
  }
  if (!state.started) {
    state.started = true;
    void followLink();
  } else void loadChanged(new Set([...ids, ...gone.keys()]));
}

/** A run whose folder was renamed, or moved within the folders, goes on under its new id. */
function followRenamed(gone: ReadonlyMap<string, string>, ids: readonly string[]): void {
  for (const [id, runId] of gone) {
    const same = ids.filter((one) => runId && entries.get(one)?.run_id === runId);
    const now = same[0];
    if (same.length !== 1 || now === undefined) continue;
    if (state.picked.delete(id)) state.picked.add(now);
    const place = state.runs.indexOf(id);
    if (place < 0 || state.runs.includes(now)) continue;
    state.runs[place] = now;
    const [first, second] = view.pair.map((one) => (one === id ? now : one)) as [string, string];
    view.pair = [first, second];
    if (state.own[id]) state.own[now] = state.own[id];
    opened.delete(id);
    made = "";
    keepLink();
  }
}

/** Runs whose entries changed are loaded again if they are shown. */
async function loadChanged(ids: ReadonlySet<string>): Promise<void> {
  showShown();
  const mine = state.runs.filter((id) => ids.has(id) || !opened.has(id) || (opened.get(id)?.problem && entries.has(id)));
  if (!mine.length) return;
  await Promise.all(mine.filter((id) => entries.has(id)).map(load));
  refresh();
}

/** After the server was away. */
async function again(): Promise<void> {
  await Promise.all(state.runs.map(load));
  if (state.runs.length) refresh();
}

// --- start -----------------------------------------------------------------------------------------------------------

function startControls(): void {
  const onSelect = (id: string, take: (value: string) => void) => {
    select(id).addEventListener("change", () => { take(select(id).value); choose(); });
  };
  onSelect("layer", (value) => { view.layer = value; state.own = {}; });
  onSelect("kind", (value) => { view.kind = value; });
  onSelect("call", (value) => { state.call = Number(value); });
  select("image").addEventListener("change", () => { setImage(Number(select("image").value)); });
  input("channel").addEventListener("input", () => {
    const { value, max } = input("channel");
    const channel = Number(value);
    if (!Number.isInteger(channel) || channel < 0 || channel > Number(max) || value === "") return;
    state.channel = channel;
    choose();
  });
  input("log").addEventListener("change", () => {
    view.log = input("log").checked;
    showCurves();
    keepLink();
  });
  input("follow").addEventListener("change", () => {
    state.follow = input("follow").checked;
    if (state.follow) goTo(view.steps.length - 1);
    else keepLink();
  });
  byId("curves-csv").addEventListener("click", () => { downloadText(curvesCsv(curvePanels()), "fadeviz_logged.csv"); });
}

window.addEventListener("hashchange", () => { if (state.started) void followLink(); });
onChange(keepLink);
startList();
startMaps(source);
startPlayback({ goTo: moveTo, setImage });
startControls();
startSaving();
startDownloads((value) => Number(plain(value)));
startPolling({ changed, again: () => { void again(); } });
