// The server: what is asked of it, what is kept of its answers, and what happens while it does not answer.

import { byId } from "../common/dom.js";
import { valuesFrame, type Frame } from "../common/frames.js";
import { entries, PREDICTION, type ListEntry } from "./state.js";

/** An answer of the server that says why there is none. */
export class Refused extends Error {}

/** Whether an error is of the network or the server, rather than one of the page. */
export const isAway = (error: unknown): boolean => error instanceof Refused || error instanceof TypeError || error instanceof SyntaxError;

interface Refusal { readonly error?: string }

/** The answer to a request, which the server gives as JSON. */
export async function ask<T>(path: string): Promise<T> {
  const response = await fetch(path, { cache: "no-store" });
  const answer = (await response.json()) as T & Refusal;
  if (answer.error !== undefined) throw new Refused(answer.error);
  return answer;
}

/** The answer to a request for something that is no JSON: a map, an image, a figure. */
export async function askRaw(path: string): Promise<Response> {
  const response = await fetch(path, { cache: "no-store" });
  if (response.ok && !(response.headers.get("content-type") ?? "").startsWith("application/json")) return response;
  throw new Refused(((await response.json()) as Refusal).error ?? `status ${response.status}`);
}

export type Query = Readonly<Record<string, string | number | null | undefined>>;

export function query(values: Query): string {
  const given = Object.entries(values).filter(([, value]) => value !== null && value !== undefined);
  return String(new URLSearchParams(given.map(([name, value]) => [name, String(value)])));
}

// --- the list ------------------------------------------------------------------------------------------------------

/** What a page does when the list changes. */
export interface Listener {
  /** Runs that have changed, and those that are gone with their run ids, at the first answer or a later one. */
  changed(ids: readonly string[], gone: ReadonlyMap<string, string>): void;
  /** The server is there again. */
  again(): void;
}

interface News {
  readonly session: string;
  readonly version: number;
  readonly runs: readonly ListEntry[];
  readonly gone: readonly string[];
}

const POLL = 1000; // ms
let pollTimer = 0;
let polls = 0;
let session = "";
let since = "";
let lostAt: Date | null = null;
let listener: Listener;

export function startPolling(given: Listener): void {
  listener = given;
  document.addEventListener("visibilitychange", () => { if (!document.hidden) void poll(); });
  void poll();
}

/** Asks what has changed; again and again, while the page can be seen. */
async function poll(): Promise<void> {
  clearTimeout(pollTimer);
  polls += 1;
  const mine = polls;
  try {
    const news = await ask<News>(`api/runs?${query({ since })}`);
    if (mine !== polls) return;
    setConnection(true);
    take(news);
  } catch (error) {
    if (mine !== polls) return;
    if (!isAway(error)) throw error;
    setConnection(false, error instanceof Refused ? error.message : "");
  } finally {
    if (mine === polls && !document.hidden) pollTimer = window.setTimeout(() => { void poll(); }, POLL);
  }
}

function take(news: News): void {
  const gone = new Set(news.gone);
  if (news.session !== session) {
    // Another server, or the first answer: it sends all there is.
    const there = new Set(news.runs.map((entry) => entry.id));
    for (const id of entries.keys()) if (!there.has(id)) gone.add(id);
  }
  session = news.session;
  since = `${news.session}.${news.version}`;
  const left = new Map<string, string>();
  for (const id of gone) {
    const entry = entries.get(id);
    if (entry) left.set(id, entry.run_id);
    entries.delete(id);
  }
  const changed: string[] = [];
  for (const entry of news.runs) {
    if (JSON.stringify(entries.get(entry.id)) === JSON.stringify(entry)) continue;
    entries.set(entry.id, entry);
    changed.push(entry.id);
  }
  listener.changed(changed, left);
}

function setConnection(there: boolean, why = ""): void {
  const line = byId("connection");
  if (there) {
    if (line.textContent !== "live") line.textContent = "live"; // a screen reader would read it out each time
    if (lostAt === null) return;
    lostAt = null;
    line.classList.remove("lost");
    listener.again();
  } else if (lostAt === null) {
    lostAt = new Date();
    line.classList.add("lost");
    line.textContent = why || `no answer from the server since ${lostAt.toLocaleTimeString()}; trying again`;
  }
}

// --- maps ----------------------------------------------------------------------------------------------------------

/** One map of a run at every step. */
export interface MapName {
  readonly kind: string;
  readonly image: number;
  readonly layer?: string;
  readonly call?: number;
  readonly channel?: number | null;
}

const KEPT = 128 * 2 ** 20; // bytes of maps that are kept; those that were not shown for long go first
interface Entry { frame: Promise<Frame>; bytes: number }
const frames = new Map<string, Entry>(); // by address
let kept = 0;

/** One map: its size and float32 values; or, of a prediction, an image. */
export function frameAt(id: string, name: MapName, step: number, version: string | undefined): Promise<Frame> {
  const path = name.kind === PREDICTION
    ? `api/run/${id}/image?${query({ what: PREDICTION, step, image: name.image, v: version })}`
    : `api/run/${id}/map?${query({ step, ...name, v: version })}`;
  const known = frames.get(path);
  if (known) {
    frames.delete(path);
    frames.set(path, known); // the last one again
    return known.frame;
  }
  const entry: Entry = { frame: fetchFrame(path, name.kind), bytes: 0 };
  frames.set(path, entry);
  entry.frame.then((frame) => {
    if (frames.get(path) !== entry) return;
    entry.bytes = 4 * frame.size[0] * frame.size[1];
    kept += entry.bytes;
    forget(entry);
  }, () => frames.delete(path)); // asked again the next time
  return entry.frame;
}

function forget(last: Entry): void {
  for (const [path, one] of frames) {
    if (kept <= KEPT) break;
    if (one === last || one.bytes === 0) continue; // still on its way
    kept -= one.bytes;
    frames.delete(path);
  }
}

async function fetchFrame(path: string, kind: string): Promise<Frame> {
  const response = await askRaw(path);
  if (kind === PREDICTION) {
    const picture = await createImageBitmap(await response.blob());
    return { size: [picture.height, picture.width], picture };
  }
  const [height = 0, width = 0] = (response.headers.get("x-size") ?? "").split(",").map(Number);
  const cells = new DataView(await response.arrayBuffer());
  return valuesFrame([height, width], Float32Array.from({ length: height * width }, (_, cell) => cells.getFloat32(4 * cell, true)));
}
