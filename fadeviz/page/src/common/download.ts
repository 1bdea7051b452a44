// Downloads: the maps that are shown as a picture, and their values and the curves as CSV.

import { byId, context, make } from "./dom.js";
import { CURVE_HEAD, csv, curveRows, MAP_HEAD, mapRows, type Cell } from "./csv.js";
import type { Panel } from "./charts.js";
import { isPicture } from "./frames.js";
import { captionText, isDifference, paletteOf, shownTiles, stepText } from "./maps.js";
import { capital, number } from "./numbers.js";
import { putRamp } from "./frames.js";
import type { Tile } from "./tiles.js";
import { stepNow, view } from "./view.js";

export function download(content: Blob, name: string): void {
  const address = URL.createObjectURL(content);
  make("a", { href: address, download: name }).click();
  setTimeout(() => { URL.revokeObjectURL(address); }, 60_000);
}

export function downloadText(text: string, name: string): void {
  download(new Blob([text], { type: "text/csv;charset=utf-8" }), name);
}

/** A name for a file, of plain characters. */
function fileName(words: readonly (string | number)[], ending: string): string {
  const text = ["fadeviz", ...words].join("_").replace(/[^A-Za-z0-9.-]+/g, "_").replace(/_+/g, "_").slice(0, 100);
  return `${text}.${ending}`;
}

const viewName = (): (string | number)[] => [view.kind, view.layer, `step${stepNow() ?? ""}`];

// --- values ----------------------------------------------------------------------------------------------------------

/** The values of the maps that are shown, at the step that is shown. */
function mapsCsv(value: (one: number) => Cell): string | null {
  const tiles = shownTiles().filter((tile) => tile.canvas && tile.shown && !isPicture(tile.shown));
  if (!tiles.length) return null;
  const rows = tiles.flatMap((tile) => (tile.shown && !isPicture(tile.shown) ? [...mapRows(tile.title, tile.step ?? 0, tile.shown, value)] : []));
  return csv(MAP_HEAD, rows);
}

export function curvesCsv(panels: readonly Panel[]): string {
  return csv(CURVE_HEAD, panels.flatMap((panel) => [...curveRows(panel.title, panel.unit, panel.curves)]));
}

// --- the picture -----------------------------------------------------------------------------------------------------

const SIDE = 320; // pixels of the longer side of a map, at least
const EDGE = 16;
const LINE = 20;

/** The maps as they are arranged on the page, with names, ranges and caption, as a picture. */
function drawView(): HTMLCanvasElement {
  const style = getComputedStyle(document.documentElement);
  const [paper, ink, quiet] = ["--paper", "--ink", "--quiet"].map((name) => style.getPropertyValue(name).trim()) as [string, string, string];
  const family = getComputedStyle(document.body).fontFamily;
  const overlay = byId("viewer").dataset.arrangement === "overlay";
  const tiles = shownTiles().filter((tile) => tile.canvas || tile.picture);
  const maps = tiles.filter((tile) => tile.canvas);
  // Of an overlay the second map lies on the first one.
  const cells = overlay ? tiles.filter((tile) => tile !== maps[1]) : tiles;
  const sizes = cells.map(({ over: { size: [height, width] } }) => {
    const scale = Math.max(1, Math.ceil(SIDE / Math.max(height, width)));
    return [height * scale, width * scale] as const;
  });
  const columns = Math.min(cells.length, Math.ceil(cells.length / Math.ceil(cells.length / 5)));
  const wide = Math.max(...sizes.map(([, width]) => width));
  const high = Math.max(...sizes.map(([height]) => height));
  const rows = Math.ceil(cells.length / columns);
  const below = overlay ? 2 * LINE : LINE;
  const full = EDGE + columns * (wide + EDGE);

  const canvas = make("canvas");
  const pen = context(canvas);
  const font = (size: number, weight = 400) => `${weight} ${size}px ${family}`;
  pen.font = font(13);
  const caption = wrapped(pen, [`${capital(stepText())}. ${captionText()}`], full - 2 * EDGE);
  setPicture(canvas, full, EDGE + rows * (LINE + high + below + 12) + caption.length * 17 + EDGE);
  pen.fillStyle = paper;
  pen.fillRect(0, 0, canvas.width, canvas.height);
  pen.textBaseline = "middle";
  cells.forEach((tile, place) => {
    const x = EDGE + (place % columns) * (wide + EDGE);
    const y = EDGE + Math.floor(place / columns) * (LINE + high + below + 12);
    const [height, width] = sizes[place] ?? [high, wide];
    const second = overlay && tile === maps[0] ? maps[1] : undefined;
    write(pen, second ? `${tile.title} | ${second.title}` : tile.title, x, y + LINE / 2 - 2, width, ink, font(14, 600));
    drawTile(pen, tile, second, x, y + LINE, width, height);
    for (const [line, one] of [tile, ...(second ? [second] : [])].entries()) {
      drawScale(pen, one, x, y + LINE + height + LINE * (line + 0.5) + 3, width, quiet, font(12));
    }
  });
  pen.font = font(13);
  caption.forEach((line, i) => { write(pen, line, EDGE, canvas.height - EDGE - (caption.length - i - 0.5) * 17, full, quiet, font(13)); });
  return canvas;
}

function setPicture(canvas: HTMLCanvasElement, width: number, height: number): void {
  Object.assign(canvas, { width, height });
}

function write(pen: CanvasRenderingContext2D, text: string, x: number, y: number, width: number, colour: string, font: string): void {
  pen.font = font;
  pen.fillStyle = colour;
  pen.fillText(text, x, y, width);
}

function drawTile(pen: CanvasRenderingContext2D, tile: Tile, second: Tile | undefined, x: number, y: number, width: number, height: number): void {
  const source = tile.canvas ?? tile.picture;
  if (!source) return;
  pen.imageSmoothingEnabled = false;
  pen.drawImage(source, x, y, width, height);
  if (second?.canvas) {
    const part = view.divider / 100;
    pen.save();
    pen.beginPath();
    pen.rect(x + part * width, y, (1 - part) * width, height);
    pen.clip();
    pen.drawImage(second.canvas, x, y, width, height);
    pen.restore();
  }
  if ((view.contour || tile.contoured) && tile.over.path) {
    const [rows, columns] = tile.over.size;
    const line = new Path2D();
    line.addPath(new Path2D(tile.over.path), new DOMMatrix([width / columns, 0, 0, height / rows, x, y]));
    for (const [colour, thick] of [["rgba(0, 0, 0, 0.65)", 3], ["#ffd43b", 1.4]] as const) {
      pen.strokeStyle = colour;
      pen.lineWidth = thick;
      pen.stroke(line);
    }
  }
}

function drawScale(pen: CanvasRenderingContext2D, tile: Tile, x: number, y: number, width: number, colour: string, font: string): void {
  if (tile.limits === null) return;
  const [low, high] = tile.limits.map(number) as [string, string];
  pen.font = font;
  const [left, right] = [low, high].map((text) => pen.measureText(text).width + 8) as [number, number];
  const bar = make("canvas");
  putRamp(bar, paletteOf(tile));
  pen.drawImage(bar, x + left, y - 4, Math.max(10, width - left - right), 8);
  write(pen, low, x, y, width, colour, font);
  write(pen, high, x + width - right + 8, y, width, colour, font);
}

/** Text in lines of at most some width. */
function wrapped(pen: CanvasRenderingContext2D, texts: readonly string[], width: number): string[] {
  const lines: string[] = [];
  for (const text of texts) {
    let line = "";
    for (const word of text.split(" ")) {
      const longer = line ? `${line} ${word}` : word;
      if (line && pen.measureText(longer).width > width) {
        lines.push(line);
        line = word;
      } else line = longer;
    }
    lines.push(line);
  }
  return lines;
}

// --- buttons ---------------------------------------------------------------------------------------------------------

/** Makes the buttons work that save what is shown; value gives a map's value as a number for CSV. */
export function startDownloads(value: (one: number) => Cell): void {
  byId("picture").addEventListener("click", () => {
    if (!shownTiles().length) return;
    const name = fileName([...viewName(), ...(shownTiles().some(isDifference) ? ["difference"] : [])], "png");
    drawView().toBlob((blob) => {
      const line = byId("trouble");
      line.hidden = blob !== null;
      if (blob) download(blob, name);
      else line.textContent = "These maps are too many or too large for one picture of this browser. Show fewer, or draw them: fadeviz grid.";
    });
  });
  byId("values").addEventListener("click", () => {
    const text = mapsCsv(value);
    if (text !== null) downloadText(text, fileName(viewName(), "csv"));
  });
}
