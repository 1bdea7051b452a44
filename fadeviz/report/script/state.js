// The data of the page, and what is selected. The page draws itself from the JSON and the packed sequences in it.

const data = JSON.parse(document.getElementById("data").textContent);
const steps = data.steps;
const palettes = readPalettes(data.palettes);
const nonFinite = packed(...data.nonFinite);

const state = {
  layer: data.layer,
  kind: data.kind,
  image: 0,
  seed: null,
  at: steps.length - 1, // index into steps
  scope: "frame",
  palette: "gray",
  contour: false,
  log: data.signature.log,
  point: null, // position of the pointer, as fractions of width and height, because layers differ in size
  playing: false,
};
