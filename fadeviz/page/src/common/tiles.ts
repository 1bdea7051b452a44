// A tile: a picture or a map with its contour, the marked cell, its colours and what is read from it.

import { draw, make } from "./dom.js";
import { putRamp, type Frame, type Size } from "./frames.js";
import type { Palette } from "./colours.js";
import { exact, number, type Limits } from "./numbers.js";
import type { Place } from "./view.js";

/** An observed image. */
export interface Observed {
  readonly name: string;
  readonly size: Size;
  readonly contour: string; // the outline of the object, as the path of an SVG whose units are pixels
  readonly object?: string; // the class of the object, where there are several
}

/** The image itself, or its ground truth. */
export interface PictureTile {
  readonly name: string;
  readonly source: string;
  readonly alt: string;
  readonly caption: string;
  readonly observed: Observed;
  readonly contoured: boolean; // shows the contour always, where it hides no measured values
  readonly pixelated?: boolean; // a mask, whose pixels have no values between them
}

/** A map that changes with the step. */
export interface MapTile {
  readonly id: string; // what the source knows it by
  readonly name: string;
  readonly extra: string; // what tells it from others of its name
  readonly observed: Observed;
  readonly missing: readonly (string | Node)[]; // why there is no map; empty if there is one
}

export interface Tile {
  readonly element: HTMLElement;
  readonly frame: HTMLElement;
  readonly over: Overlay;
  readonly reading: HTMLElement;
  readonly note: HTMLElement;
  readonly scale: HTMLElement;
  readonly ends: readonly [HTMLElement, HTMLElement];
  readonly bar: HTMLCanvasElement;
  readonly title: string;
  readonly heading: HTMLElement;
  readonly contoured: boolean;
  readonly id: string; // empty for pictures
  readonly picture: HTMLImageElement | null;
  readonly canvas: HTMLCanvasElement | null; // null for pictures and where there is no map
  shown: Frame | null;
  step: number | null; // of what is shown
  limits: Limits | null;
}

export interface Overlay {
  readonly svg: SVGSVGElement;
  readonly lines: SVGGElement;
  readonly marks: readonly SVGRectElement[];
  readonly size: Size;
  readonly path: string;
}

function overlay({ size, contour }: Observed): Overlay {
  const [height, width] = size;
  const box = { width: 1, height: 1, x: 0, y: 0, visibility: "hidden" };
  const lines = draw("g", {}, draw("path", { class: "contour-dark", d: contour }), draw("path", { class: "contour-light", d: contour }));
  const marks = [draw("rect", { class: "pixel-dark", ...box }), draw("rect", { class: "pixel-light", ...box })];
  const svg = draw("svg", { class: "overlay", viewBox: `0 0 ${width} ${height}`, preserveAspectRatio: "none", "aria-hidden": "true" }, lines, ...marks);
  return { svg, lines, marks, size, path: contour };
}

/** An image's name, with the class of the object whose contour is drawn, where there are several. */
export function imageName({ name, object }: Observed): string {
  return object ? `${name} · object: ${object}` : name;
}

type Parts = Pick<Tile, "title" | "contoured" | "id" | "picture" | "canvas">;

function makeTile(name: string, extra: string, observed: Observed, parts: Parts): Tile {
  const heading = make("span", { class: "name" }, name, ...(extra ? [" ", make("span", {}, extra)] : []));
  const over = overlay(observed);
  const frame = make("div", { class: "frame" });
  frame.style.aspectRatio = `${observed.size[1]} / ${observed.size[0]}`;
  const ends = [make("span"), make("span")] as const;
  const bar = make("canvas", { width: 256, height: 1, "aria-hidden": "true" });
  const scale = make("div", { class: "range" }, ends[0], bar, ends[1]);
  const note = make("span", { class: "at" });
  const reading = make("div", { class: "reading screen" });
  const element = make("figure", { class: "tile" }, heading, frame);
  return { element, frame, over, reading, note, scale, ends, bar, heading, shown: null, step: null, limits: null, ...parts };
}

export function pictureTile({ name, source, alt, caption, observed, contoured, pixelated }: PictureTile): Tile {
  const picture = make("img", { src: source, alt, draggable: "false" });
  const tile = makeTile(name, "", observed, { title: name, contoured, id: "", picture, canvas: null });
  if (pixelated) picture.style.imageRendering = "pixelated";
  tile.frame.append(picture, tile.over.svg);
  tile.element.append(make("div", { class: "range" }, caption), tile.reading);
  return tile;
}

export function mapTile({ id, name, extra, observed, missing }: MapTile): Tile {
  const canvas = missing.length ? null : make("canvas", { role: "img" });
  const title = [name, extra].filter(Boolean).join(", ");
  const tile = makeTile(name, extra, observed, { title, contoured: false, id, picture: null, canvas });
  if (canvas) {
    tile.frame.append(canvas, tile.over.svg);
    tile.element.append(tile.scale, tile.note, tile.reading);
  } else {
    tile.frame.append(make("div", { class: "missing" }, make("div", {}, ...missing)));
    tile.element.append(tile.note);
  }
  return tile;
}

/** Calls back with the place under the pointer, and with null when it leaves. */
export function onPoint({ frame }: Tile, point: (place: Place | null) => void): void {
  const follow = (event: PointerEvent) => {
    const box = frame.getBoundingClientRect();
    const x = (event.clientX - box.left) / box.width;
    const y = (event.clientY - box.top) / box.height;
    if (x >= 0 && x < 1 && y >= 0 && y < 1) point({ x, y });
  };
  frame.addEventListener("pointermove", follow);
  frame.addEventListener("pointerdown", follow);
  // On touch screens the mark stays when the finger is lifted, so that the values can be read.
  frame.addEventListener("pointerleave", (event) => { if (event.pointerType === "mouse") point(null); });
}

/** The row and column of a place in a map. */
export function cellAt({ x, y }: Place, [rows, columns]: Size): readonly [row: number, column: number] {
  return [Math.floor(y * rows), Math.floor(x * columns)];
}

/** Marks the cell at a place of maps of some size, or none. */
export function markCell({ over }: Tile, place: Place | null, [rows, columns]: Size): void {
  const [row, column] = place ? cellAt(place, [rows, columns]) : [0, 0];
  const [height, width] = over.size;
  const box = { x: (column * width) / columns, y: (row * height) / rows, width: width / columns, height: height / rows };
  for (const mark of over.marks) {
    mark.setAttribute("visibility", place ? "visible" : "hidden");
    if (place) for (const [name, value] of Object.entries(box)) mark.setAttribute(name, String(value));
  }
}

/** The bar of colours, and what its two ends stand for. */
export function showScale(tile: Tile, limits: Limits | null, palette: Palette): void {
  tile.ends.forEach((end, side) => {
    const value = limits?.[side] ?? null;
    end.textContent = value === null ? "not finite" : number(value);
    end.title = value === null ? "" : exact(value);
  });
  putRamp(tile.bar, palette);
}
