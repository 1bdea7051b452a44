// The data of the page: JSON that the library writes (fadeviz/report), and the packed maps beside it.

import { bytes, packed, readPalette, readPalettes } from "../common/colours.js";
import { pageData } from "../common/dom.js";
import type { Panel } from "../common/charts.js";
import type { Size } from "../common/frames.js";
import type { Limits } from "../common/numbers.js";
import type { Observed } from "../common/tiles.js";
import { view, type Colours } from "../common/view.js";

export interface Sequence {
  readonly run: number;
  readonly image: number;
  readonly size: Size;
  readonly element: string; // the id of the element that holds it
  readonly low: readonly (number | null)[]; // limits of each frame
  readonly high: readonly (number | null)[];
  readonly own: Limits; // over all steps
  readonly holes: boolean; // whether some cells are not finite
  readonly layer?: string; // where the layers of the runs differ
}

export interface Maps {
  readonly layer: string;
  readonly kind: string;
  readonly shared: Readonly<Record<string, Limits>>; // by image, over all runs
  readonly sequences: readonly Sequence[];
}

export interface Image extends Observed {
  readonly image: string;
  readonly matte?: string;
}

export interface Run { readonly run: number; readonly seed: string | null }
export interface Operator { readonly title: string; readonly runs: readonly Run[] }

export interface Group {
  readonly name: string;
  readonly meaning: string;
  readonly note: string;
  readonly panels: readonly Panel[];
  readonly measures: readonly (readonly [name: string, meaning: string])[];
}

export interface Arrival {
  readonly label: string;
  readonly step: number | null;
  readonly low: number | null;
  readonly high: number | null;
  readonly depth: number;
  readonly fromStart: boolean;
}

export interface KymographPanel {
  readonly title: string;
  readonly subtitle: string;
  readonly row: string;
  readonly value: readonly (readonly (number | null)[])[]; // by step, then by depth
  readonly arrivals: readonly Arrival[];
}

export interface Predictions {
  readonly colours: readonly number[];
  readonly legend: readonly (readonly [name: string, index: number])[];
  readonly outlined: boolean;
  readonly truths: readonly string[];
  readonly sequences: readonly Pick<Sequence, "run" | "image" | "size" | "element" | "holes">[];
}

interface Data {
  readonly layer: string;
  readonly kind: string;
  readonly steps: readonly number[];
  readonly images: readonly Image[];
  readonly count: number; // of images whose maps are here
  readonly operators: readonly Operator[];
  readonly shown: readonly number[]; // runs whose maps are here
  readonly maps: readonly Maps[];
  readonly groups: readonly Group[];
  readonly signature: {
    readonly edges: readonly number[];
    readonly span: number;
    readonly log: boolean;
    readonly panels: readonly KymographPanel[];
  };
  readonly kinds: Readonly<Record<string, string>>;
  readonly palettes: Readonly<Record<string, string>>;
  readonly signed: string;
  readonly nonFinite: readonly [number, number, number];
  readonly predictions: Predictions | null;
}


export const data = pageData<Data>();


export const signedBytes = bytes(data.signed);
export const colours: Colours = {
  palettes: readPalettes(data.palettes),
  signed: readPalette(signedBytes),
  nonFinite: packed(...data.nonFinite),
};

/** What is shown at first. */
export function readData(): void {
  view.steps = data.steps;
  view.at = data.steps.length - 1;
  view.layer = data.layer;
  view.kind = data.kind;
  view.log = data.signature.log;
}
