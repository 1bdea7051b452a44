// What is chosen, on both pages: which step, which colours, which arrangement.

import type { Palette } from "./colours.js";

export type Scope = "frame" | "run" | "shared";
export type Arrangement = "side" | "overlay" | "difference";

/** A position on a map as fractions of its width and height, because layers differ in size. */
export interface Place { readonly x: number; readonly y: number }

export interface View {
  steps: readonly number[]; // recorded steps of the runs shown
  at: number; // index into steps
  layer: string;
  kind: string;
  image: number;
  scope: Scope;
  palette: string;
  contour: boolean;
  log: boolean; // the step axis of charts
  point: Place | null;
  playing: boolean;
  arrangement: Arrangement;
  pair: readonly [first: string, second: string]; // ids of the two maps of an overlay or a difference
  divider: number; // per cent of an overlay that show the first one
}

export const view: View = {
  steps: [],
  at: 0,
  layer: "",
  kind: "",
  image: 0,
  scope: "frame",
  palette: "gray",
  contour: false,
  log: false,
  point: null,
  playing: false,
  arrangement: "side",
  pair: ["", ""],
  divider: 50,
};

export const asScope = (text: string | null): Scope => (text === "run" || text === "shared" ? text : "frame");
export const asArrangement = (text: string | null): Arrangement => (text === "overlay" || text === "difference" ? text : "side");

/** Colours that both pages are given. */
export interface Colours {
  readonly palettes: Record<string, Palette>;
  readonly signed: Palette;
  readonly nonFinite: number;
}

/** The step that is shown; null before there is any. */
export const stepNow = (): number | null => view.steps[view.at] ?? null;
