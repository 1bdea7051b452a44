// The maps: tiles side by side, two maps in one frame with a divider, or their difference; and the step that they show.

import { byId, context, input, make, onRadio, select, setOptions, setRadio } from "./dom.js";
import { clear, difference, isPicture, pixelsOf, putPixels, setSize, type Frame, type Values } from "./frames.js";
import { count, number, symmetric, title, type Limits } from "./numbers.js";
import { follow, showSlider } from "./playback.js";
import { arrangeTiles } from "./rows.js";
import { cellAt, mapTile, markCell, onPoint, pictureTile, showScale, type MapTile, type PictureTile, type Tile } from "./tiles.js";
import { asArrangement, asScope, stepNow, view, type Colours, type Place } from "./view.js";

/** A map at the step that is shown. */
export interface Found {
  readonly frame: Frame | null;
  readonly limits: Limits | null; // what its colours span, by view.scope; null for pictures and without a finite value
  readonly step: number | null; // the step that the frame is of
  readonly note: string; // what a reader has to know of it
  readonly stale?: boolean; // there is no newer answer: what is shown stays
}

/** Where the maps come from: the page itself, or a server. */
export interface Source {
  readonly colours: Colours;
  /** The map of a tile at a recorded step, by its index. */
  find(id: string, at: number): Promise<Found>;
  /** Least and greatest of the second tile less the first over all steps. */
  differenceLimits(first: string, second: string): Promise<Limits | null>;
  /** A map's value as text. */
  value(value: number): string;
  /** Called when all maps of a step are painted. */
  painted?(): void;
  /** Called when a reader has chosen something that a link should keep. */
  changed(): void;
}

const SIGNED = "signed";
let source: Source;
let pictures: readonly PictureTile[] = [];
let maps: readonly MapTile[] = [];
let tiles: Tile[] = [];
let minus: Tile | null = null; // the difference
let turn = 0; // counts what was asked to be shown, so that a slow answer does not replace a later one

export const shownTiles = (): readonly Tile[] => tiles;
export const isDifference = (tile: Tile): boolean => tile === minus;

/** Makes the controls of the maps work. */
export function startMaps(given: Source): void {
  source = given;
  const names = Object.keys(given.colours.palettes);
  setOptions(select("palette"), names.map((name) => [name, name]), view.palette);
  select("palette").addEventListener("change", () => {
    view.palette = select("palette").value;
    void paint();
    source.changed();
  });
  input("contour").addEventListener("change", () => {
    view.contour = input("contour").checked;
    showContour();
    source.changed();
  });
  onRadio("scope", (value) => {
    view.scope = asScope(value);
    void paint();
    source.changed();
  });
  onRadio("arrangement", (value) => {
    view.arrangement = asArrangement(value);
    void layOut();
    source.changed();
  });
  for (const [place, id] of ["first", "second"].entries()) {
    select(id).addEventListener("change", () => {
      const chosen = select(id).value;
      const [first, second] = view.pair;
      // The other one gives way, so that no map is compared with itself.
      if (place === 0) view.pair = [chosen, second === chosen ? first : second];
      else view.pair = [first === chosen ? second : first, chosen];
      void layOut();
      source.changed();
    });
  }
  new ResizeObserver(arrange).observe(byId("viewer"));
}

/** Shows other maps. */
export async function setTiles(ofImage: readonly PictureTile[], ofRuns: readonly MapTile[]): Promise<void> {
  pictures = ofImage;
  maps = ofRuns;
  await layOut();
}

function layOut(): Promise<void> {
  const there = maps.filter((one) => !one.missing.length);
  showChoices(there);
  const [first, second] = view.pair.map((id) => there.find((one) => one.id === id));
  minus = null;
  tiles = pictures.map(pictureTile);
  const shown = tiles.map((tile) => tile.element);
  if (arrangement() === "side" || !first || !second) {
    const made = maps.map(mapTile);
    tiles.push(...made);
    shown.push(...made.map((tile) => tile.element));
  } else {
    const [one, other] = [mapTile(first), mapTile(second)];
    tiles.push(one, other);
    if (arrangement() === "overlay") {
      shown.push(makePair(one, other));
    } else {
      minus = mapTile({ id: "", name: `${other.title} less ${one.title}`, extra: "", observed: first.observed, missing: [] });
      tiles.push(minus);
      shown.push(one.element, other.element, minus.element);
    }
  }
  for (const tile of tiles) onPoint(tile, point);
  byId("tiles").replaceChildren(...shown);
  byId("viewer").dataset.arrangement = arrangement();
  arrange();
  showContour();
  return paint();
}

/** The arrangement that is chosen, as far as these maps allow it: classes have no difference, and one map no partner. */
function arrangement() {
  if (maps.filter((one) => !one.missing.length).length < 2) return "side";
  return view.arrangement === "difference" && view.kind === "prediction" ? "side" : view.arrangement;
}

/** Which two maps are compared: those chosen before, where they are still there, else the first ones. */
function showChoices(there: readonly MapTile[]): void {
  const [first, second] = view.pair.map((id) => there.find((one) => one.id === id)?.id);
  const one = first ?? there.find((other) => other.id !== second)?.id ?? "";
  const two = second ?? there.find((other) => other.id !== one)?.id ?? "";
  view.pair = [one, two];
  const entries = there.map((map) => [map.id, [map.name, map.extra].filter(Boolean).join(", ")] as const);
  setOptions(select("first"), entries, one);
  setOptions(select("second"), entries, two);
  byId("pair").hidden = arrangement() === "side" || there.length < 3;
  byId("arrangements").hidden = there.length < 2;
  setRadio("arrangement", arrangement());
  for (const radio of document.querySelectorAll<HTMLInputElement>("input[name=arrangement]")) {
    radio.disabled = radio.value === "difference" && view.kind === "prediction";
  }
}

/** Two maps in one frame: the first one left of the divider, the second one right of it. */
function makePair(one: Tile, other: Tile): HTMLElement {
  const divider = make("div", { class: "divider", "aria-hidden": "true" });
  const slider = make("input", { type: "range", class: "wipe", min: 0, max: 100, step: 1, "aria-label": `Divider: ${one.title} left of it, ${other.title} right of it` });
  slider.value = String(view.divider);
  const { canvas } = other;
  const move = () => {
    view.divider = Number(slider.value);
    slider.setAttribute("aria-valuetext", `${view.divider} % ${one.title}`);
    if (canvas) canvas.style.clipPath = `inset(0 0 0 ${view.divider}%)`;
    divider.style.left = `${view.divider}%`;
  };
  slider.addEventListener("input", () => { move(); source.changed(); });
  move();
  if (canvas) {
    canvas.classList.add("above");
    one.frame.insertBefore(canvas, one.over.svg);
  }
  one.frame.append(divider);
  const halves = (...parts: readonly [Node, Node][]) => make("div", { class: "halves-pair" }, ...parts.flat());
  const below = ({ scale, note, reading }: Tile) => make("div", {}, scale, note, reading);
  return make("figure", { class: "tile pair" }, halves([one.heading, other.heading]), one.frame, slider, halves([below(one), below(other)]));
}

function arrange(): void {
  const fields = document.querySelector("#viewer .controls");
  const labels = [...fields?.children ?? []].filter((one) => one instanceof HTMLLabelElement && !one.hidden);
  fields?.classList.toggle("odd", labels.length % 2 === 1); // so that none is alone in two columns
  arrangeTiles(byId("tiles"), pictures.length, arrangement() === "overlay");
}

// --- the step --------------------------------------------------------------------------------------------------------

/** Shows the step of the view; resolves when every map of it is painted. */
export async function paint(): Promise<void> {
  turn += 1;
  const mine = turn;
  showSlider();
  showCaption();
  const step = stepNow();
  if (step === null) return;
  follow();
  await Promise.all(tiles.filter((tile) => tile.canvas && tile !== minus).map((tile) => showMap(tile, mine)));
  if (mine !== turn) return;
  if (minus) await showDifference(minus, mine);
  if (mine !== turn) return;
  showPoint();
  source.painted?.();
}

async function showMap(tile: Tile, mine: number): Promise<void> {
  const found = await source.find(tile.id, view.at);
  if (mine !== turn) return;
  if (found.stale) {
    tile.note.textContent = found.note;
    return;
  }
  tile.shown = found.frame;
  tile.step = found.step;
  tile.limits = found.limits;
  tile.note.textContent = found.note;
  draw(tile, view.palette);
}

async function showDifference(tile: Tile, mine: number): Promise<void> {
  const [one, other] = tiles.filter((any) => any.id);
  const frames = [one?.shown ?? null, other?.shown ?? null];
  const both = frames.every((frame): frame is Values => frame !== null && !isPicture(frame));
  const [first, second] = frames as Values[];
  const frame = both && first && second ? difference(second, first) : null; // as the library: the second less the first
  let limits = frame?.own ?? null;
  if (frame && view.scope !== "frame") limits = await source.differenceLimits(...view.pair);
  if (mine !== turn) return;
  tile.shown = frame;
  tile.limits = symmetric(limits);
  tile.step = stepNow();
  if (both && !frame && first && second) tile.note.textContent = `maps of ${first.size.join("×")} and ${second.size.join("×")} have no difference`;
  else tile.note.textContent = frame ? "" : "needs both maps";
  draw(tile, SIGNED);
}

export function paletteOf(tile: Tile) {
  const { palettes, signed } = source.colours;
  return tile === minus ? signed : palettes[view.palette] ?? signed;
}

function draw(tile: Tile, name: string): void {
  const { canvas, shown, limits } = tile;
  if (!canvas) return;
  tile.scale.hidden = shown === null || isPicture(shown);
  if (!shown) {
    clear(canvas);
    canvas.setAttribute("aria-label", `${tile.title}: nothing`);
  } else if (isPicture(shown)) {
    setSize(canvas, shown.size);
    context(canvas).drawImage(shown.picture, 0, 0);
    canvas.setAttribute("aria-label", `${tile.title}, prediction at step ${tile.step ?? ""}`);
  } else {
    putPixels(canvas, shown.size, pixelsOf(shown, limits, paletteOf(tile), source.colours.nonFinite));
    showScale(tile, limits, paletteOf(tile));
    const what = name === SIGNED ? "difference" : title(view.kind);
    const span = limits === null ? "" : `, from ${number(limits[0])} to ${number(limits[1])}`;
    canvas.setAttribute("aria-label", `${tile.title}, ${what} at step ${tile.step ?? ""}${span}`);
  }
}

// --- what is read ----------------------------------------------------------------------------------------------------

function point(place: Place | null): void {
  view.point = place;
  showPoint();
}

function showPoint(): void {
  const place = view.point;
  const first = tiles.find((tile) => tile.shown);
  const size = first?.shown?.size ?? null;
  const line = byId("place");
  if (!place || !size) line.textContent = size ? line.dataset.hint ?? "" : "";
  else {
    const [row, column] = cellAt(place, size);
    line.textContent = `Row ${row}, column ${column} of ${size.join(" × ")}, counted from 0.`;
  }
  for (const tile of tiles) {
    const own = tile.shown?.size ?? size;
    if (!own) continue;
    markCell(tile, place, own);
    tile.reading.textContent = place && tile.shown && !isPicture(tile.shown) ? readValue(tile.shown, place) : "";
  }
}

function readValue(frame: Values, place: Place): string {
  const [row, column] = cellAt(place, frame.size);
  const value = frame.values[row * frame.size[1] + column] ?? NaN;
  return Number.isFinite(value) ? `${source.value(value)} here` : "not finite here";
}

function showContour(): void {
  input("contour").checked = view.contour;
  for (const tile of tiles) tile.over.lines.setAttribute("visibility", view.contour || tile.contoured ? "visible" : "hidden");
}

// --- the caption -----------------------------------------------------------------------------------------------------

const SPANS = {
  frame: "each frame spans its own minimum to maximum; brightness cannot be compared between frames",
  run: "one range over all steps of a run",
  shared: "one range over all steps of all runs",
};

let captionOf: () => string = () => "";

/** What the caption says of the maps, before it says what the colours span. */
export function setCaption(text: () => string): void {
  captionOf = text;
}

export function captionText(): string {
  const text = captionOf();
  if (!text || view.kind === "prediction") return text;
  const several = maps.filter((one) => !one.missing.length).length > 1;
  const spans = view.scope === "shared" && !several ? "one range over all steps" : SPANS[view.scope];
  const less = minus ? ` Difference: brown where ${minus.title.replace(" less ", " is higher than ")}, blue where it is lower.` : "";
  return `${text} Colours: ${spans}.${less}`;
}

function showCaption(): void {
  byId("caption").textContent = captionText();
}

/** The step, as text for captions and names of files. */
export const stepText = (): string => { const step = stepNow(); return step === null ? "" : `step ${count(step)}`; };
