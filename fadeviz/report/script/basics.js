// Small helpers and colours, shared by the report and the viewer.
//
// The parts of a page's script are joined into one scope (page.py of each). Names come from files of others: they reach
// the document as text only (textContent, setAttribute), never as markup.

const byId = (id) => document.getElementById(id);
const SVG = "http://www.w3.org/2000/svg";
const MINUS = "\u2212";

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}
const make = (tag, attributes = {}, ...children) => fill(document.createElement(tag), attributes, children);
const draw = (tag, attributes = {}, ...children) => fill(document.createElementNS(SVG, tag), attributes, children);

function bytes(base64) {
  return Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
}

/** A value with three significant digits and a true minus sign: format_number of the library. */
function number(value) {
  if (value === null || !Number.isFinite(value)) return "–";
  if (Number.isInteger(value) && Math.abs(value) < 1000) return String(value).replace("-", MINUS);
  const exponent = Number(value.toExponential(2).split("e")[1]);
  const places = Math.max(0, 2 - exponent);
  const text = places <= 6 && exponent < 9
    ? value.toLocaleString("en-US", { minimumFractionDigits: places, maximumFractionDigits: places })
    : value.toExponential(2).replace("+", "");
  return text.replaceAll("-", MINUS);
}
const count = (value) => value.toLocaleString("en-US").replace("-", MINUS);
const title = (kind) => kind.replaceAll("_", " ");

/** Rounds halves to even, as the library does. */
function rint(value) {
  const below = Math.floor(value);
  const rest = value - below;
  return rest < 0.5 || (rest === 0.5 && below % 2 === 0) ? below : below + 1;
}

// --- colours -------------------------------------------------------------------------------------------------------

/** The colour maps of a page as canvas pixels: 256 of each. */
function readPalettes(texts) {
  const read = {};
  for (const [name, text] of Object.entries(texts)) {
    const colours = bytes(text);
    read[name] = Uint32Array.from({ length: 256 }, (_, i) =>
      packed(colours[3 * i], colours[3 * i + 1], colours[3 * i + 2]));
  }
  return read;
}

/** A colour as the four bytes of a canvas pixel, in this machine's byte order. */
function packed(red, green, blue) {
  return new Uint32Array(new Uint8ClampedArray([red, green, blue, 255]).buffer)[0];
}

/** The place of a value between two limits as one of 256 colours. */
function colourIndex(value, low, high) {
  const unit = high > low ? (value - low) / (high - low) : 0.5 + 0.5 * Math.sign(value - low);
  return rint(Math.min(1, Math.max(0, unit)) * 255);
}
