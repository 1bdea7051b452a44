// What the page was given, what the server said of the runs, and what is chosen beyond the view.

import { packed, readPalette, readPalettes, bytes } from "../common/colours.js";
import { pageData } from "../common/dom.js";
import type { Limits } from "../common/numbers.js";
import type { Curve } from "../common/charts.js";
import type { Observed } from "../common/tiles.js";
import type { Colours } from "../common/view.js";

interface Data {
  readonly version: string;
  readonly folders: readonly string[];
  readonly kinds: Readonly<Record<string, string>>;
  readonly fixedRanges: Readonly<Record<string, Limits>>;
  readonly metrics: Readonly<Record<string, { readonly title: string; readonly column: string; readonly unit: string }>>;
  readonly palettes: Readonly<Record<string, string>>;
  readonly signed: string;
  readonly nonFinite: readonly [number, number, number];
}

export const data = pageData<Data>();
export const colours: Colours = {
  palettes: readPalettes(data.palettes),
  signed: readPalette(bytes(data.signed)),
  nonFinite: packed(...data.nonFinite),
};
export const PREDICTION = "prediction";

/** A line of the list of runs. */
export interface ListEntry {
  readonly id: string;
  readonly run_id: string;
  readonly title: string;
  readonly name: string;
  readonly network: string;
  readonly data: string;
  readonly place: string;
  readonly seed: number | null;
  readonly status: string;
  readonly message: string;
  readonly step: number | null;
  readonly last_step: number | null;
  readonly metrics: Readonly<Record<string, number | null>>;
  readonly changed: number | null; // seconds since 1970
}

export interface KindDetails {
  readonly images: number;
  readonly channels: number | null;
  readonly calls: Readonly<Record<string, readonly [height: number, width: number]>>;
}

export interface LayerDetails {
  readonly name: string;
  readonly bare: string; // without the prefixes that trainers put before it
  readonly kinds: Readonly<Record<string, KindDetails>>;
}

/** What the server says of one run. */
export interface Details {
  readonly id: string;
  readonly runId: string;
  readonly place: string;
  readonly title: string;
  readonly seed: number | null;
  readonly colour: number; // of its operator, in all figures
  readonly network: string;
  readonly steps: readonly (readonly [step: number, version: string])[];
  readonly layers: readonly LayerDetails[];
  readonly figureLayer: string;
  readonly predictions: string;
  readonly broken: readonly string[];
}

export interface Images {
  readonly lost: string;
  readonly truth: string;
  readonly images: readonly (Observed & { readonly digest: string })[];
}

export interface Logged {
  readonly curves: Readonly<Record<string, Omit<Curve, "label" | "role">>>;
  readonly leftOut: number;
}

export const entries = new Map<string, ListEntry>();

export const FILTERS = ["title", "network", "data", "status"] as const;
export type Filter = (typeof FILTERS)[number];

export const state = {
  // the list
  search: "",
  filters: { title: "", network: "", data: "", status: "" } as Record<Filter, string>,
  sort: "place",
  down: false,
  picked: new Set<string>(),
  // the maps
  runs: [] as string[], // ids
  own: {} as Record<string, string>, // id -> layer, of runs that name it otherwise
  call: 0,
  channel: 0,
  follow: true,
  wanted: null as number | null, // the step that a link asks for
  started: false, // once the list is there
};

const ACTIVE = ["running", "recording"];
const STATUSES = [...ACTIVE, "finished", "failed", "stopped", "damaged", "interrupted", "gone"];
export const isActive = (entry: ListEntry | undefined): boolean => entry !== undefined && ACTIVE.includes(entry.status);
/** The class of a status, of which the style knows some. */
export const statusClass = (status: string): string => `state ${STATUSES.includes(status) ? status : ""}`;
