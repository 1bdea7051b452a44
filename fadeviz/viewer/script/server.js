// The server: what is asked of it, what is kept of its answers, and what happens while it does not answer.

const entries = new Map(); // id -> a line of the list
let session = "";
let since = "";
let lostAt = null;

/** An answer of the server that says why there is none. */
class Refused extends Error {}

async function ask(path) {
  const response = await fetch(path, { cache: "no-store" });
  const isText = (response.headers.get("content-type") || "").startsWith("application/json");
  if (response.ok && !isText) return response;
  const answer = await response.json();
  if (answer.error !== undefined) throw new Refused(answer.error);
  return answer;
}

const query = (values) => String(new URLSearchParams(
  Object.entries(values).filter(([, value]) => value !== null && value !== undefined)));

// --- the list ------------------------------------------------------------------------------------------------------

const POLL = 1000; // ms
let pollTimer = 0;
let polls = 0;

/** Asks what has changed; again and again, while the page can be seen. */
async function poll() {
  clearTimeout(pollTimer);
  polls += 1;
  const mine = polls;
  try {
    const news = await ask(`api/runs?${query({ since })}`);
    if (mine !== polls) return;
    setConnection(true);
    take(news);
  } catch (error) {
    if (mine !== polls) return;
    if (!(error instanceof TypeError || error instanceof SyntaxError || error instanceof Refused)) throw error;
    setConnection(false, error instanceof Refused ? error.message : "");
  } finally {
    if (mine === polls && !document.hidden) pollTimer = setTimeout(poll, POLL);
  }
}

function take(news) {
  const gone = new Set(news.gone);
  if (news.session !== session) {
    // Another server, or the first answer: it sends all there is.
    const there = new Set(news.runs.map((entry) => entry.id));
    for (const id of entries.keys()) if (!there.has(id)) gone.add(id);
  }
  session = news.session;
  since = `${news.session}.${news.version}`;
  const changed = [];
  const left = new Map();
  for (const id of gone) {
    if (entries.has(id)) left.set(id, entries.get(id).run_id);
    entries.delete(id);
  }
  for (const entry of news.runs) {
    const before = entries.get(entry.id);
    if (JSON.stringify(before) === JSON.stringify(entry)) continue;
    entries.set(entry.id, entry);
    changed.push(entry.id);
  }
  const first = !started;
  if (changed.length || left.size || first) {
    followRenamed(left, changed);
    showList();
  }
  if (first) start();
  else runsChanged(new Set([...changed, ...left.keys()]));
}

/** A run whose folder was renamed, or moved within the folders, goes on under its new id. */
function followRenamed(left, changed) {
  for (const [id, runId] of left) {
    const same = changed.filter((one) => runId && entries.get(one).run_id === runId);
    if (same.length !== 1) continue;
    if (state.picked.delete(id)) state.picked.add(same[0]);
    const place = state.runs.indexOf(id);
    if (place < 0 || state.runs.includes(same[0])) continue;
    state.runs[place] = same[0];
    if (id in state.own) state.own[same[0]] = state.own[id];
    opened.delete(id);
    tiles = []; // made anew
    keepLink();
  }
}

function setConnection(there, why = "") {
  const line = byId("connection");
  if (there && lostAt === null) {
    if (line.textContent !== "live") line.textContent = "live"; // a screen reader would read it out each time
    return;
  }
  if (there) {
    lostAt = null;
    line.textContent = "live";
    line.classList.remove("lost");
    again();
  } else if (lostAt === null) {
    lostAt = new Date();
    line.classList.add("lost");
    line.textContent = why || `no answer from the server since ${lostAt.toLocaleTimeString()}; trying again`;
  }
}

document.addEventListener("visibilitychange", () => { if (!document.hidden) poll(); });

// --- maps ----------------------------------------------------------------------------------------------------------

const KEPT = 128 * 2 ** 20; // bytes of maps that are kept, those that were not shown for long go first
const frames = new Map(); // address -> promise of a frame
let kept = 0;

/** One map: its size and float32 values; or, of a prediction, an image. */
function frameAt(id, name, step, version) {
  const path = name.kind === PREDICTION
    ? `api/run/${id}/image?${query({ what: PREDICTION, step, image: name.image, v: version })}`
    : `api/run/${id}/map?${query({ step, ...name, v: version })}`;
  const known = frames.get(path);
  if (known) {
    frames.delete(path);
    frames.set(path, known); // the last one again
    return known.frame;
  }
  const entry = { frame: null, bytes: 0 };
  entry.frame = fetchFrame(path, name.kind).then((frame) => {
    if (frames.get(path) !== entry) return frame;
    entry.bytes = frame.bytes;
    kept += frame.bytes;
    for (const [old, one] of frames) {
      if (kept <= KEPT) break;
      if (one === entry || one.bytes === 0) continue; // still on its way
      kept -= one.bytes;
      frames.delete(old);
    }
    return frame;
  });
  entry.frame.catch(() => frames.delete(path)); // asked again the next time
  frames.set(path, entry);
  return entry.frame;
}

async function fetchFrame(path, kind) {
  const response = await ask(path);
  if (kind === PREDICTION) {
    const image = await createImageBitmap(await response.blob());
    return { size: [image.height, image.width], image, bytes: 4 * image.width * image.height };
  }
  const size = response.headers.get("x-size").split(",").map(Number);
  const buffer = await response.arrayBuffer();
  const view = new DataView(buffer);
  const values = new Float32Array(size[0] * size[1]);
  for (let cell = 0; cell < values.length; cell += 1) values[cell] = view.getFloat32(4 * cell, true);
  return { size, values, own: ownLimits(values), bytes: buffer.byteLength };
}

/** Least and greatest finite value; null if there is none. */
function ownLimits(values) {
  let low = Infinity;
  let high = -Infinity;
  for (const value of values) {
    if (!Number.isFinite(value)) continue;
    if (value < low) low = value;
    if (value > high) high = value;
  }
  return low <= high ? [low, high] : null;
}
