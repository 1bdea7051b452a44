// What the page was given, and what is chosen.

const data = JSON.parse(document.getElementById("data").textContent);
const palettes = readPalettes(data.palettes);
const nonFinite = packed(...data.nonFinite);
const PREDICTION = "prediction";

let steps = []; // recorded steps of the runs shown, those of all of them together

const state = {
  // the list
  search: "",
  filters: { title: "", network: "", data: "", status: "" },
  sort: "place",
  down: false,
  picked: new Set(),
  // the maps
  runs: [], // ids
  layer: "",
  own: {}, // id -> layer, of runs that name it otherwise
  kind: "",
  call: 0,
  image: 0,
  channel: 0,
  at: 0, // index into steps
  scope: "frame",
  palette: "gray",
  contour: false,
  follow: true,
  log: false, // the step axis of what was logged
  point: null, // position of the pointer, as fractions of width and height, because layers differ in size
  playing: false,
};

const ACTIVE = ["running", "recording"];
const isActive = (entry) => Boolean(entry) && ACTIVE.includes(entry.status);

/** A float32 as the shortest decimal that is no other float32. */
function exact(value) {
  for (let digits = 1; digits <= 9; digits += 1) {
    const text = value.toPrecision(digits);
    if (Math.fround(Number(text)) === value) return String(Number(text)).replaceAll("-", MINUS);
  }
  return String(value).replaceAll("-", MINUS);
}
